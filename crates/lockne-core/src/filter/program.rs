//! Tests one after the other, with jumps forward only.

use lockne_abi::observe::Packet;

use super::{
    expression::Expression,
    formula::{Formula, Tunnel},
};

/// The longest program: far from what the jumps of the kernel's instructions span.
const LONGEST: usize = 2048;

/// What decides whether a packet is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    first: Next,
    steps: Vec<Step>,
}

/// A test, and what comes after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The test.
    pub test: Test,
    /// What comes if it holds.
    pub then: Next,
    /// What comes if it does not.
    pub otherwise: Next,
}

/// What comes after a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The packet is wanted.
    Accept,
    /// It is not.
    Reject,
    /// The step with this number, which is always a later one.
    Step(usize),
}

/// A comparison of one field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Test {
    /// What is compared.
    pub field: Field,
    /// Which bits of it.
    pub mask: u32,
    /// How.
    pub relation: Relation,
    /// With what.
    pub value: u32,
}

/// How two numbers are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// They are the same.
    Equal,
    /// The field is not the smaller one.
    AtLeast,
}

/// A part of [`Packet`]. Parts of addresses and names are four bytes, in the order of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields of `Packet`")]
pub enum Field {
    Source(u8),
    Destination(u8),
    Name(u8),
    Pid,
    Mark,
    Device,
    Length,
    Ethertype,
    SourcePort,
    DestinationPort,
    Protocol,
    Behind,
    Flags,
}

/// A filter has more tests than fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the filter takes {0} comparisons, and at most {LONGEST} can be made")]
pub struct TooLong(usize);

impl Program {
    /// Makes a program of an expression; `tunnel` says where the packets of a tunnel are.
    ///
    /// # Errors
    ///
    /// If the expression takes too many comparisons.
    pub fn new(expression: &Expression, tunnel: &dyn Fn(&str) -> Tunnel) -> Result<Self, TooLong> {
        let mut backwards = Vec::new();
        let formula = expression.formula(tunnel);
        let first = emit(&formula, Next::Accept, Next::Reject, &mut backwards);
        if backwards.len() > LONGEST {
            return Err(TooLong(backwards.len()));
        }
        let last = backwards.len().saturating_sub(1);
        let steps: Vec<Step> = backwards
            .iter()
            .rev()
            .map(|step| {
                let turn = |number| Next::Step(last - number);
                step.leading(turn)
            })
            .collect();
        let first = first.leading(|number| Next::Step(last - number));
        Ok(Self { first, steps }.without_the_unreachable())
    }

    /// Constant parts of a formula leave steps that nothing leads to.
    fn without_the_unreachable(self) -> Self {
        let mut reached = vec![false; self.steps.len()];
        let reach = |next: Next, reached: &mut Vec<bool>| {
            if let Next::Step(number) = next {
                reached[number] = true;
            }
        };
        reach(self.first, &mut reached);
        for (number, step) in self.steps.iter().enumerate() {
            if reached[number] {
                reach(step.then, &mut reached);
                reach(step.otherwise, &mut reached);
            }
        }
        let number_of = |number: usize| reached[..number].iter().filter(|is| **is).count();
        let turn = |number| Next::Step(number_of(number));
        let steps = self.steps.iter().zip(&reached).filter(|(_, is)| **is);
        Self {
            first: self.first.leading(turn),
            steps: steps.map(|(step, _)| step.leading(turn)).collect(),
        }
    }

    /// Whether there is a packet that it may want.
    #[must_use]
    pub fn can_accept(&self) -> bool {
        let steps = self.steps.iter();
        let mut ends = steps.flat_map(|step| [step.then, step.otherwise]);
        self.first == Next::Accept || ends.any(|next| next == Next::Accept)
    }

    /// Where it starts.
    #[must_use]
    pub const fn first(&self) -> Next {
        self.first
    }

    /// Its steps, in order.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Whether a packet is wanted.
    #[must_use]
    pub fn wants(&self, packet: &Packet) -> bool {
        let mut next = self.first;
        loop {
            let number = match next {
                Next::Accept => return true,
                Next::Reject => return false,
                Next::Step(number) => number,
            };
            let step = &self.steps[number];
            next = if step.test.holds(packet) {
                step.then
            } else {
                step.otherwise
            };
        }
    }
}

impl Step {
    fn leading(&self, to: impl Fn(usize) -> Next) -> Self {
        Self {
            test: self.test,
            then: self.then.leading(&to),
            otherwise: self.otherwise.leading(&to),
        }
    }
}

impl Next {
    fn leading(self, to: impl Fn(usize) -> Self) -> Self {
        match self {
            Self::Step(number) => to(number),
            end => end,
        }
    }
}

/// Adds the steps of `formula`, the last one first, and returns where it starts.
fn emit(formula: &Formula, then: Next, otherwise: Next, backwards: &mut Vec<Step>) -> Next {
    match formula {
        Formula::Test(test) => {
            backwards.push(Step {
                test: *test,
                then,
                otherwise,
            });
            Next::Step(backwards.len() - 1)
        }
        Formula::Not(inner) => emit(inner, otherwise, then, backwards),
        Formula::All(parts) => parts
            .iter()
            .rev()
            .fold(then, |then, part| emit(part, then, otherwise, backwards)),
        Formula::Any(parts) => parts.iter().rev().fold(otherwise, |otherwise, part| {
            emit(part, then, otherwise, backwards)
        }),
    }
}

impl Test {
    fn holds(&self, packet: &Packet) -> bool {
        let value = self.field.of(packet) & self.mask;
        match self.relation {
            Relation::Equal => value == self.value,
            Relation::AtLeast => value >= self.value,
        }
    }
}

impl Field {
    /// What a packet has there.
    #[must_use]
    pub fn of(self, packet: &Packet) -> u32 {
        let word = |bytes: [u8; 16], word: u8| {
            let at = usize::from(word) * 4;
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        match self {
            Self::Source(part) => word(packet.source, part),
            Self::Destination(part) => word(packet.destination, part),
            Self::Name(part) => word(packet.name, part),
            Self::Pid => packet.pid,
            Self::Mark => packet.mark,
            Self::Device => packet.ifindex,
            Self::Length => packet.length,
            Self::Ethertype => packet.ethertype.into(),
            Self::SourcePort => packet.source_port.into(),
            Self::DestinationPort => packet.destination_port.into(),
            Self::Protocol => packet.protocol.into(),
            Self::Behind => packet.behind.into(),
            Self::Flags => packet.flags.into(),
        }
    }
}
