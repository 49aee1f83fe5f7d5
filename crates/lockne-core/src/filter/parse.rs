//! The grammar: tcpdump's, where `and` and `or` bind equally, from left to right.
//!
//! A word without qualifiers takes those of the last word that had some: `host a or b`. After a word
//! that stands for itself, as `tcp`, there is nothing to take.

use std::cell::Cell;

use winnow::{
    ModalResult, Parser,
    combinator::{alt, eof, opt, preceded, terminated},
    error::{ErrMode, ParserError},
    stream::{Stateful, Stream as _},
    token::any,
};

use self::value::{address, masked, not_a, number, port, protocol};
use super::{
    Error, Problem,
    expression::{Address, Bound, Direction, Expression, Family, Layer, Primitive, Range},
    token::{Kind, Token, tokens},
};

mod value;

/// How many parentheses, or negations, can be in each other.
pub(super) const DEEPEST: usize = 64;

/// Words of tcpdump that are none of ours.
const FOREIGN: [&str; 28] = [
    "ether",
    "fddi",
    "tr",
    "wlan",
    "link",
    "gateway",
    "protochain",
    "broadcast",
    "multicast",
    "inbound",
    "outbound",
    "ifname",
    "on",
    "vlan",
    "mpls",
    "pppoed",
    "pppoes",
    "iso",
    "ah",
    "esp",
    "igmp",
    "igrp",
    "pim",
    "vrrp",
    "carp",
    "stp",
    "atalk",
    "geneve",
];

type Input<'t> = Stateful<&'t [Token<'t>], State<'t>>;
type Parsed<T> = ModalResult<T, Error>;

#[derive(Clone, Copy, Debug)]
struct State<'t> {
    /// The qualifiers that a word without any takes.
    last: &'t Cell<Option<Qualifiers>>,
    depth: &'t Cell<usize>,
    end: usize,
}

/// What stands before a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Qualifiers {
    layer: Option<Layer>,
    direction: Option<Direction>,
    kind: Type,
}

/// What a word is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Host,
    Net,
    Port,
    PortRange,
    Number,
    Name,
    Pid,
    Tunnel,
}

impl Type {
    const fn word(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Net => "net",
            Self::Port => "port",
            Self::PortRange => "portrange",
            Self::Number => "proto",
            Self::Name => "proc",
            Self::Pid => "pid",
            Self::Tunnel => "tunnel",
        }
    }
}

impl<'t> ParserError<Input<'t>> for Error {
    type Inner = Self;

    fn from_input(input: &Input<'t>) -> Self {
        unexpected(input, "an expression")
    }

    fn into_inner(self) -> Result<Self, Self> {
        Ok(self)
    }
}

fn unexpected(input: &Input<'_>, expected: &'static str) -> Error {
    let next = input.input.first();
    Error {
        at: next.map_or(input.state.end, |token| token.at),
        problem: match next.map(|token| token.kind) {
            Some(Kind::Word(word)) if FOREIGN.contains(&word) => Problem::Foreign(word.to_owned()),
            next => Problem::Unexpected {
                expected,
                found: next.map_or_else(|| "the end".to_owned(), Kind::shown),
            },
        },
    }
}

/// Reads a filter.
pub(super) fn expression(text: &str) -> Result<Expression, Error> {
    let tokens = tokens(text)?;
    if tokens.is_empty() {
        return Ok(Expression::Everything);
    }
    let state = State {
        last: &Cell::new(None),
        depth: &Cell::new(0),
        end: text.len(),
    };
    let mut input = Stateful {
        input: &tokens[..],
        state,
    };
    let whole = terminated(sequence(term), expect(eof.void(), "`and`, `or` or the end"));
    { whole }
        .parse_next(&mut input)
        .map_err(|error| error.into_inner().unwrap_or_else(|_| from_nothing(text)))
}

/// Only for parsers that wait for more input, of which there are none here.
fn from_nothing(text: &str) -> Error {
    Error {
        at: text.len(),
        problem: Problem::Unexpected {
            expected: "more",
            found: "the end".to_owned(),
        },
    }
}

/// Terms with `and` and `or` between them.
fn sequence<'t>(
    mut term: impl FnMut(&mut Input<'t>) -> Parsed<Expression>,
) -> impl FnMut(&mut Input<'t>) -> Parsed<Expression> {
    move |input| {
        let mut left = term(input)?;
        while let Some(both) = opt(conjunction).parse_next(input)? {
            let right = Box::new(term(input).map_err(ErrMode::cut)?);
            left = if both {
                Expression::And(Box::new(left), right)
            } else {
                Expression::Or(Box::new(left), right)
            };
        }
        Ok(left)
    }
}

/// Whether `and`, or `or`.
fn conjunction(input: &mut Input<'_>) -> Parsed<bool> {
    alt((kind(Kind::And).value(true), kind(Kind::Or).value(false))).parse_next(input)
}

fn term(input: &mut Input<'_>) -> Parsed<Expression> {
    alt((
        negated(term),
        in_parentheses(sequence(term)),
        length,
        qualified,
        abbreviation,
        bare,
    ))
    .parse_next(input)
}

fn negated<'t>(
    mut inner: impl FnMut(&mut Input<'t>) -> Parsed<Expression>,
) -> impl FnMut(&mut Input<'t>) -> Parsed<Expression> {
    move |input| {
        kind(Kind::Not).parse_next(input)?;
        deeper(input, |input| inner(input).map_err(ErrMode::cut))
            .map(|expression| Expression::Not(Box::new(expression)))
    }
}

fn in_parentheses<'t>(
    mut inner: impl FnMut(&mut Input<'t>) -> Parsed<Expression>,
) -> impl FnMut(&mut Input<'t>) -> Parsed<Expression> {
    move |input| {
        kind(Kind::Open).parse_next(input)?;
        deeper(input, |input| {
            let close = expect(kind(Kind::Close), "`and`, `or` or `)`");
            terminated(
                |input: &mut Input<'t>| inner(input).map_err(ErrMode::cut),
                close,
            )
            .parse_next(input)
        })
    }
}

fn deeper<'t, T>(
    input: &mut Input<'t>,
    inner: impl FnOnce(&mut Input<'t>) -> Parsed<T>,
) -> Parsed<T> {
    let depth = input.state.depth.get() + 1;
    if depth > DEEPEST {
        let at = unexpected(input, "").at;
        return Err(ErrMode::Cut(Error {
            at,
            problem: Problem::TooDeep,
        }));
    }
    input.state.depth.set(depth);
    let result = inner(input);
    input.state.depth.set(depth - 1);
    result
}

/// `less 100`, `greater 100`.
fn length(input: &mut Input<'_>) -> Parsed<Expression> {
    let bound = alt((
        word("less").value(Bound::AtMost as fn(u32) -> Bound),
        word("greater").value(Bound::AtLeast as fn(u32) -> Bound),
    ));
    let bound = { bound }.parse_next(input)?;
    input.state.last.set(None);
    let (at, text) = value(input)?;
    let length = number(text).ok_or_else(|| not_a(at, text, "a length"))?;
    Ok(Expression::Is(Primitive::Length(bound(length))))
}

/// Qualifiers, and the word or words they are for.
fn qualified(input: &mut Input<'_>) -> Parsed<Expression> {
    let start = input.input.first().map_or(0, |token| token.at);
    let qualifiers = qualifiers(input)?;
    check(qualifiers).map_err(|problem| ErrMode::Cut(Error { at: start, problem }))?;
    input.state.last.set(Some(qualifiers));
    identifier(input).map_err(ErrMode::cut)
}

fn qualifiers(input: &mut Input<'_>) -> Parsed<Qualifiers> {
    let kinds = [
        Type::Host,
        Type::Net,
        Type::Port,
        Type::PortRange,
        Type::Number,
        Type::Name,
        Type::Pid,
        Type::Tunnel,
    ];
    let layer = opt(layer).parse_next(input)?;
    let direction = opt(direction).parse_next(input)?;
    let kind = opt(one_of(kinds, Type::word)).parse_next(input)?;
    let kind = match (direction, kind) {
        (_, Some(kind)) => kind,
        (Some(_), None) => Type::Host,
        (None, None) => return Err(ErrMode::Backtrack(unexpected(input, "a qualifier"))),
    };
    Ok(Qualifiers {
        layer,
        direction,
        kind,
    })
}

fn layer(input: &mut Input<'_>) -> Parsed<Layer> {
    one_of(Layer::ALL, Layer::word).parse_next(input)
}

fn direction(input: &mut Input<'_>) -> Parsed<Direction> {
    let end = || {
        alt((
            word("src").value(Direction::Source),
            word("dst").value(Direction::Destination),
        ))
    };
    let first = end().parse_next(input)?;
    let other = opt((conjunction, end())).parse_next(input)?;
    Ok(match other {
        Some((_, second)) if second == first => first,
        Some((true, _)) => Direction::Both,
        Some((false, _)) => Direction::Either,
        None => first,
    })
}

/// Whether the qualifiers go together.
fn check(qualifiers: Qualifiers) -> Result<(), Problem> {
    let Qualifiers {
        layer,
        direction,
        kind,
    } = qualifiers;
    let mismatch = |first: &str| Problem::Mismatch {
        first: first.to_owned(),
        second: kind.word().to_owned(),
    };
    if let Some(layer) = layer {
        let fits = match kind {
            Type::Host | Type::Net => {
                matches!(layer, Layer::Ip | Layer::Ip6 | Layer::Arp | Layer::Rarp)
            }
            Type::Port | Type::PortRange => matches!(layer, Layer::Transport(_)),
            Type::Number => matches!(layer, Layer::Ip | Layer::Ip6),
            Type::Name | Type::Pid | Type::Tunnel => false,
        };
        if !fits {
            return Err(mismatch(layer.word()));
        }
    }
    let has_ends = matches!(kind, Type::Host | Type::Net | Type::Port | Type::PortRange);
    match direction {
        Some(Direction::Destination) if !has_ends => Err(mismatch("dst")),
        Some(_) if !has_ends => Err(mismatch("src")),
        _ => Ok(()),
    }
}

/// A word, or several in parentheses, under the qualifiers before them.
fn identifier(input: &mut Input<'_>) -> Parsed<Expression> {
    alt((
        negated(identifier),
        in_parentheses(sequence(identifier)),
        bare,
    ))
    .parse_next(input)
}

/// A protocol that stands for itself.
fn abbreviation(input: &mut Input<'_>) -> Parsed<Expression> {
    let layer = layer(input)?;
    input.state.last.set(None);
    Ok(Expression::Is(Primitive::Layer(layer)))
}

/// A word that takes the last qualifiers.
fn bare(input: &mut Input<'_>) -> Parsed<Expression> {
    let (at, text) = value(input)?;
    let Some(qualifiers) = input.state.last.get() else {
        let problem = if FOREIGN.contains(&text) {
            Problem::Foreign(text.to_owned())
        } else {
            Problem::NoQualifier(text.to_owned())
        };
        return Err(ErrMode::Cut(Error { at, problem }));
    };
    primitive(input, qualifiers, at, text).map(Expression::Is)
}

fn primitive<'t>(
    input: &mut Input<'t>,
    qualifiers: Qualifiers,
    at: usize,
    text: &'t str,
) -> Parsed<Primitive> {
    let Qualifiers {
        layer, direction, ..
    } = qualifiers;
    let direction = direction.unwrap_or(Direction::Either);
    Ok(match qualifiers.kind {
        kind @ (Type::Host | Type::Net) => {
            let mask = if kind == Type::Net {
                opt(preceded(word("mask"), value)).parse_next(input)?
            } else {
                None
            };
            let address = match mask {
                Some((at, mask)) => masked(text, mask).ok_or_else(|| not_a(at, mask, "a mask"))?,
                None => address(text, kind, at)?,
            };
            let fits = match address {
                Address::V4 { .. } => layer != Some(Layer::Ip6),
                Address::V6 { .. } => matches!(layer, None | Some(Layer::Ip6)),
            };
            if !fits {
                let problem = Problem::Mismatch {
                    first: layer.map_or(String::new(), |layer| layer.to_string()),
                    second: text.to_owned(),
                };
                return Err(ErrMode::Cut(Error { at, problem }));
            }
            Primitive::Address {
                layer,
                direction,
                address,
            }
        }
        kind @ (Type::Port | Type::PortRange) => {
            let range = match text.split_once('-') {
                Some((first, last)) if kind == Type::PortRange => port(first)
                    .zip(port(last))
                    .ok_or_else(|| not_a(at, text, "a range of ports"))?,
                _ => {
                    let port = port(text).ok_or_else(|| not_a(at, text, "a port"))?;
                    (port, port)
                }
            };
            Primitive::Port {
                transport: match layer {
                    Some(Layer::Transport(transport)) => Some(transport),
                    _ => None,
                },
                direction,
                range: Range {
                    first: range.0.min(range.1),
                    last: range.0.max(range.1),
                },
            }
        }
        Type::Number => Primitive::Number {
            family: match layer {
                Some(Layer::Ip) => Some(Family::V4),
                Some(Layer::Ip6) => Some(Family::V6),
                _ => None,
            },
            number: protocol(text).ok_or_else(|| not_a(at, text, "the number of a protocol"))?,
        },
        Type::Name => {
            // The kernel keeps fifteen bytes of a name, and a zero.
            let mut name = [0; 16];
            let length = text.len().min(15);
            name[..length].copy_from_slice(&text.as_bytes()[..length]);
            Primitive::Name(name)
        }
        Type::Pid => Primitive::Pid(
            number(text)
                .filter(|pid| *pid > 0)
                .ok_or_else(|| not_a(at, text, "the id of a process"))?,
        ),
        Type::Tunnel => Primitive::Tunnel(text.to_owned()),
    })
}

/// The next word, and where it is.
fn value<'t>(input: &mut Input<'t>) -> Parsed<(usize, &'t str)> {
    let start = input.checkpoint();
    if let Token {
        at,
        kind: Kind::Word(text) | Kind::Literal(text),
    } = any.parse_next(input)?
    {
        return Ok((at, text));
    }
    input.reset(&start);
    Err(ErrMode::Backtrack(unexpected(input, "an expression")))
}

fn kind<'t>(wanted: Kind<'t>) -> impl Parser<Input<'t>, (), ErrMode<Error>> {
    any.verify(move |token: &Token<'t>| token.kind == wanted)
        .void()
}

fn word(wanted: &str) -> impl Parser<Input<'_>, (), ErrMode<Error>> {
    kind(Kind::Word(wanted))
}

fn one_of<'t, T: Copy, const N: usize>(
    all: [T; N],
    word: fn(T) -> &'static str,
) -> impl Parser<Input<'t>, T, ErrMode<Error>> {
    any.verify_map(move |token: Token<'t>| {
        all.into_iter()
            .find(|one| token.kind == Kind::Word(word(*one)))
    })
}

/// `parser`, or an error that says what it wanted.
fn expect<'t, T>(
    mut parser: impl Parser<Input<'t>, T, ErrMode<Error>>,
    expected: &'static str,
) -> impl Parser<Input<'t>, T, ErrMode<Error>> {
    move |input: &mut Input<'t>| {
        let start = input.checkpoint();
        parser.parse_next(input).map_err(|_| {
            input.reset(&start);
            ErrMode::Cut(unexpected(input, expected))
        })
    }
}
