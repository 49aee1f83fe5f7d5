//! The words and signs of a filter.

use winnow::{
    Parser as _, Result,
    ascii::multispace0,
    combinator::{alt, delimited, preceded, repeat, terminated},
    error::ContextError,
    stream::LocatingSlice,
    token::{take_till, take_while},
};

use super::{Error, Problem};

/// A word or sign, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub(super) at: usize,
    pub(super) kind: Kind<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind<'a> {
    And,
    Or,
    Not,
    Open,
    Close,
    /// A word that may be one of the language.
    Word(&'a str),
    /// A word in quotes, or with a backslash before it: never one of the language.
    Literal(&'a str),
}

impl Kind<'_> {
    /// What is there, as it is told.
    pub(super) fn shown(self) -> String {
        match self {
            Self::And => "`and`".to_owned(),
            Self::Or => "`or`".to_owned(),
            Self::Not => "`not`".to_owned(),
            Self::Open => "`(`".to_owned(),
            Self::Close => "`)`".to_owned(),
            Self::Word(word) | Self::Literal(word) => format!("`{word}`"),
        }
    }
}

type Input<'a> = LocatingSlice<&'a str>;

/// Splits a text.
pub(super) fn tokens(text: &str) -> std::result::Result<Vec<Token<'_>>, Error> {
    let all = preceded(multispace0, repeat(0.., terminated(token, multispace0)));
    let mut all = all.map(|tokens: Vec<Token<'_>>| tokens);
    all.parse(LocatingSlice::new(text)).map_err(|error| {
        let at = error.offset();
        let problem = match text[at..].chars().next() {
            Some('"' | '\'') => Problem::OpenQuote,
            next => Problem::Unexpected {
                expected: "a word",
                found: next.map_or_else(|| "the end".to_owned(), |sign| format!("`{sign}`")),
            },
        };
        Error { at, problem }
    })
}

fn token<'a>(input: &mut Input<'a>) -> Result<Token<'a>, ContextError> {
    let sign = alt((
        "&&".value(Kind::And),
        "||".value(Kind::Or),
        "!".value(Kind::Not),
        "(".value(Kind::Open),
        ")".value(Kind::Close),
        quoted('"'),
        quoted('\''),
        preceded('\\', bare).map(Kind::Literal),
        bare.map(|word| match word {
            "and" => Kind::And,
            "or" => Kind::Or,
            "not" => Kind::Not,
            word => Kind::Word(word),
        }),
    ));
    let (kind, span) = sign.with_span().parse_next(input)?;
    Ok(Token {
        at: span.start,
        kind,
    })
}

fn quoted<'a>(quote: char) -> impl winnow::Parser<Input<'a>, Kind<'a>, ContextError> {
    delimited(quote, take_till(0.., quote), quote).map(Kind::Literal)
}

fn bare<'a>(input: &mut Input<'a>) -> Result<&'a str, ContextError> {
    let is_part = |letter: char| !letter.is_whitespace() && !"()!&|\"'\\".contains(letter);
    take_while(1.., is_part).parse_next(input)
}
