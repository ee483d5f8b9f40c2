//! A place in a JSON text, and what is read from there.
//!
//! One pass, no recursion, no intermediate values. Strict JSON, but for the bare `NaN`, `Infinity` and `-Infinity` of Triton's dialect.
//! Every error is a place and what was expected there; the caller names the field. Deliberately absent: what the values mean.

use std::borrow::Cow;
use std::fmt::{self, Display};

use bascule_serving::InferError;

use super::number::Number;

/// Levels of arrays and objects inside one value. Deeper nesting means nothing in the protocol.
pub(crate) const MAX_DEPTH: u32 = 64;

/// The bytes that end a run of plain text in a string.
const IS_SPECIAL: [bool; 256] = {
    let mut special = [false; 256];
    let mut control = 0;
    while control < 0x20 {
        special[control] = true;
        control += 1;
    }
    special[b'"' as usize] = true;
    special[b'\\' as usize] = true;
    special
};

/// Something else than what was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unexpected {
    /// Where, in bytes from the start.
    pub(crate) at: usize,
    /// What was expected there.
    pub(crate) expected: &'static str,
}

impl Unexpected {
    /// The error for the caller, which shows the beginning of what was found.
    pub(crate) fn in_field(self, text: &[u8], field: impl Display) -> InferError {
        let Unexpected { at, expected } = self;
        InferError::invalid(format!(
            "{field}: expected {expected}, found {} at byte {at}",
            Found(text.get(at..).unwrap_or_default())
        ))
    }
}

/// What lies at a place, for people: never more than a few bytes of it.
struct Found<'a>(&'a [u8]);

impl Display for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 24;
        let Some(first) = self.0.first() else { return f.write_str("the end") };
        match first {
            b'"' => f.write_str("a string"),
            b'{' => f.write_str("an object"),
            b'[' => f.write_str("an array"),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'+' | b'.' => {
                let word = self.0.iter().take_while(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.'));
                let word: String = word.take(SHOWN + 1).map(|byte| char::from(*byte)).collect();
                match word.get(..SHOWN) {
                    Some(start) => write!(f, "{start}…"),
                    None => f.write_str(&word),
                }
            }
            0x20..=0x7e => write!(f, "'{}'", char::from(*first)),
            other => write!(f, "the byte 0x{other:02x}"),
        }
    }
}

/// A place in a JSON text.
#[derive(Debug, Clone)]
pub(crate) struct Cursor<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(text: &'a [u8]) -> Cursor<'a> {
        Cursor { text, at: 0 }
    }

    /// The whole text.
    pub(crate) fn text(&self) -> &'a [u8] {
        self.text
    }

    /// This place.
    pub(crate) fn place(&self) -> usize {
        self.at
    }

    /// The place of the next value, behind white space.
    pub(crate) fn mark(&mut self) -> usize {
        self.peek();
        self.at
    }

    /// Another cursor on the same text, at a place that [`Cursor::mark`] gave.
    pub(crate) fn at(&self, mark: usize) -> Cursor<'a> {
        Cursor { text: self.text, at: mark }
    }

    /// Bytes from here to the end.
    pub(crate) fn remaining(&self) -> usize {
        self.text.len() - self.at
    }

    /// Skips white space and shows the next byte.
    #[inline]
    pub(crate) fn peek(&mut self) -> Option<u8> {
        loop {
            match self.text.get(self.at) {
                Some(b' ' | b'\t' | b'\n' | b'\r') => self.at += 1,
                other => return other.copied(),
            }
        }
    }

    /// Takes one byte of punctuation behind white space.
    #[inline]
    pub(crate) fn take(&mut self, byte: u8) -> bool {
        let there = self.peek() == Some(byte);
        self.at += usize::from(there);
        there
    }

    pub(crate) fn expect(&mut self, byte: u8, expected: &'static str) -> Result<(), Unexpected> {
        if self.take(byte) { Ok(()) } else { Err(self.unexpected(expected)) }
    }

    /// What was expected here.
    pub(crate) fn unexpected(&self, expected: &'static str) -> Unexpected {
        Unexpected { at: self.at, expected }
    }

    /// Nothing but white space may follow.
    pub(crate) fn end(&mut self) -> Result<(), Unexpected> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.unexpected("nothing after the JSON value")),
        }
    }

    /// The next member's name, with its colon taken; `None` at the end of the object. `first` starts true, behind the brace.
    pub(crate) fn next_member(&mut self, first: &mut bool) -> Result<Option<Cow<'a, str>>, Unexpected> {
        if self.take(b'}') {
            return Ok(None);
        }
        if !std::mem::take(first) {
            self.expect(b',', "',' or '}'")?;
        }
        if self.peek() != Some(b'"') {
            return Err(self.unexpected("a member name in double quotes"));
        }
        let name = self.string("a member name in double quotes")?;
        self.expect(b':', "':'")?;
        Ok(Some(name))
    }

    /// Whether the array goes on with another element; takes the comma or the bracket. `first` starts true, behind the bracket.
    #[inline]
    pub(crate) fn next_element(&mut self, first: &mut bool) -> Result<bool, Unexpected> {
        if std::mem::take(first) {
            return Ok(!self.take(b']'));
        }
        if self.take(b',') {
            return Ok(true);
        }
        self.expect(b']', "',' or ']'").map(|()| false)
    }

    /// A string, borrowed where it has no escapes.
    pub(crate) fn string(&mut self, expected: &'static str) -> Result<Cow<'a, str>, Unexpected> {
        if let Some(plain) = self.plain_string() {
            return Ok(Cow::Borrowed(plain));
        }
        let mut whole: Cow<'a, str> = Cow::Borrowed("");
        self.string_parts(expected, |part| match part {
            Part::Text(run) if whole.is_empty() => whole = Cow::Borrowed(run),
            Part::Text(run) => whole.to_mut().push_str(run),
            Part::Escaped(character) => whole.to_mut().push(character),
        })?;
        Ok(whole)
    }

    /// Takes a string without escapes, as nearly all are. Where there is something else, nothing is taken.
    fn plain_string(&mut self) -> Option<&'a str> {
        if self.peek() != Some(b'"') {
            return None;
        }
        let rest = &self.text[self.at + 1..];
        let end = rest.iter().position(|byte| IS_SPECIAL[usize::from(*byte)])?;
        if rest[end] != b'"' {
            return None;
        }
        let text = str::from_utf8(&rest[..end]).ok()?;
        self.at += end + 2;
        Some(text)
    }

    /// Appends a string's bytes.
    pub(crate) fn string_into(&mut self, out: &mut Vec<u8>, expected: &'static str) -> Result<(), Unexpected> {
        self.string_parts(expected, |part| match part {
            Part::Text(run) => out.extend_from_slice(run.as_bytes()),
            Part::Escaped(character) => out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        })
    }

    fn string_parts(&mut self, expected: &'static str, mut part: impl FnMut(Part<'a>)) -> Result<(), Unexpected> {
        self.expect(b'"', expected)?;
        loop {
            let start = self.at;
            let run = self.text[start..].iter().position(|byte| IS_SPECIAL[usize::from(*byte)]);
            self.at = run.map_or(self.text.len(), |run| start + run);
            let run = std::str::from_utf8(&self.text[start..self.at])
                .map_err(|error| Unexpected { at: start + error.valid_up_to(), expected: "UTF-8" })?;
            if !run.is_empty() {
                part(Part::Text(run));
            }
            match self.text.get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => part(Part::Escaped(self.escape()?)),
                Some(_) => return Err(self.unexpected("a control character to be escaped")),
                None => return Err(self.unexpected("a closing double quote")),
            }
        }
    }

    fn escape(&mut self) -> Result<char, Unexpected> {
        const EXPECTED: &str = "an escape of \" \\ / b f n r t or u and four hexadecimal digits";
        let start = self.at;
        let refuse = |expected| Unexpected { at: start, expected };
        let letter = self.text.get(start + 1).copied();
        self.at += 2;
        Ok(match letter {
            Some(quoted @ (b'"' | b'\\' | b'/')) => char::from(quoted),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                const PAIR: &str = "surrogates in pairs";
                let unit = self.hex4().ok_or(refuse(EXPECTED))?;
                let code = match unit {
                    0xd800..=0xdbff => {
                        if self.text.get(self.at..self.at + 2) != Some(b"\\u".as_slice()) {
                            return Err(refuse(PAIR));
                        }
                        self.at += 2;
                        let low = self.hex4().filter(|low| (0xdc00..=0xdfff).contains(low)).ok_or(refuse(PAIR))?;
                        0x1_0000 + ((unit - 0xd800) << 10) + (low - 0xdc00)
                    }
                    unit => unit,
                };
                char::from_u32(code).ok_or(refuse(PAIR))?
            }
            _ => {
                self.at = start;
                return Err(refuse(EXPECTED));
            }
        })
    }

    fn hex4(&mut self) -> Option<u32> {
        let digits = self.text.get(self.at..self.at + 4)?;
        self.at += 4;
        digits.iter().try_fold(0, |unit, digit| Some(unit * 16 + char::from(*digit).to_digit(16)?))
    }

    /// A number, or one of the bare words for a float that is none.
    #[inline(always)]
    pub(crate) fn number(&mut self, expected: &'static str) -> Result<Number<'a>, Unexpected> {
        self.peek();
        match Number::scan(&self.text[self.at..]) {
            Some((number, length)) => {
                self.at += length;
                Ok(number)
            }
            None => Err(self.unexpected(expected)),
        }
    }

    /// A whole number from 0 on.
    pub(crate) fn unsigned(&mut self, expected: &'static str) -> Result<u64, Unexpected> {
        let at = self.mark();
        self.number(expected)?.unsigned().ok_or(Unexpected { at, expected })
    }

    /// `true` or `false`.
    pub(crate) fn boolean(&mut self, expected: &'static str) -> Result<bool, Unexpected> {
        if self.word(b"true") {
            Ok(true)
        } else if self.word(b"false") {
            Ok(false)
        } else {
            Err(self.unexpected(expected))
        }
    }

    fn word(&mut self, word: &[u8]) -> bool {
        self.peek();
        let rest = &self.text[self.at..];
        let there = rest.starts_with(word) && !rest.get(word.len()).is_some_and(u8::is_ascii_alphanumeric);
        self.at += if there { word.len() } else { 0 };
        there
    }

    /// Skips any value and checks that it is one. Which brackets are open is kept in one word: one bit a level.
    pub(crate) fn skip_value(&mut self) -> Result<(), Unexpected> {
        let mut depth = 0u32;
        let mut objects = 0u64;
        loop {
            // Here a value begins.
            let opened = match self.peek() {
                Some(open @ (b'{' | b'[')) => {
                    if depth == MAX_DEPTH {
                        return Err(self.unexpected("at most 64 levels of nesting"));
                    }
                    self.at += 1;
                    depth += 1;
                    objects = objects << 1 | u64::from(open == b'{');
                    true
                }
                _ => {
                    self.skip_scalar()?;
                    false
                }
            };
            let mut first = opened;
            // Here a value has ended, or the inside of a bracket begins.
            loop {
                if depth == 0 {
                    return Ok(());
                }
                let goes_on =
                    if objects & 1 == 1 { self.next_member(&mut first)?.is_some() } else { self.next_element(&mut first)? };
                if goes_on {
                    break;
                }
                first = false;
                depth -= 1;
                objects >>= 1;
            }
        }
    }

    fn skip_scalar(&mut self) -> Result<(), Unexpected> {
        const EXPECTED: &str = "a value";
        match self.peek() {
            Some(b'"') => self.string_parts(EXPECTED, |_| ()),
            Some(b't' | b'f') => self.boolean(EXPECTED).map(drop),
            Some(b'n') if self.word(b"null") => Ok(()),
            _ => self.number(EXPECTED).map(drop),
        }
    }
}

enum Part<'a> {
    Text(&'a str),
    Escaped(char),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skip(text: &str) -> Result<(), Unexpected> {
        let mut cursor = Cursor::new(text.as_bytes());
        cursor.skip_value()?;
        cursor.end()
    }

    #[test]
    fn what_is_json_is_skipped_and_what_is_not_is_refused_where_it_goes_wrong() {
        for text in [
            "null",
            " true ",
            "false",
            "0",
            "-0.5e+10",
            "\"\"",
            "[]",
            "{}",
            "[[],{}]",
            "{\"a\":[{\"b\":1},2]}",
            "NaN",
            "[-Infinity,Infinity]",
            "\"\\ud83d\\ude00\\u0041\\n\\/\"",
            "[1 , 2\n]",
            "\"é\"",
        ] {
            assert_eq!(skip(text), Ok(()), "{text}");
        }
        for (text, at) in [
            ("", 0),
            ("nul", 0),
            ("nulls", 0),
            ("truely", 0),
            ("01", 1),
            ("1.", 0),
            ("+1", 0),
            (".5", 0),
            ("1e", 0),
            ("-", 0),
            ("[1,]", 3),
            ("[,1]", 1),
            ("[1 2]", 3),
            ("{\"a\":1,}", 7),
            ("{,}", 1),
            ("{1:2}", 1),
            ("{\"a\" 1}", 5),
            ("[1}", 2),
            ("{\"a\":1]", 6),
            ("]", 0),
            ("\"\\ud800\"", 1),
            ("\"\\udc00\"", 1),
            ("\"\\ud800\\u0041\"", 1),
            ("\"\\x\"", 1),
            ("\"\\u12\"", 1),
            ("\"a", 2),
            ("\"a\nb\"", 2),
            ("\"\\", 1),
            ("[", 1),
            ("{", 1),
            ("{\"a\":1", 6),
            ("1 1", 2),
            ("-NaN", 0),
            ("Infinit", 0),
            ("{}}", 2),
        ] {
            assert_eq!(skip(text).map_err(|error| error.at), Err(at), "{text}");
        }
    }

    #[test]
    fn strings_must_be_utf8() {
        let mut cursor = Cursor::new(b"\"ab\xff\"");
        assert_eq!(cursor.string(""), Err(Unexpected { at: 3, expected: "UTF-8" }));
    }

    #[test]
    fn strings_are_borrowed_where_they_can_be() {
        let read = |text: &'static str| Cursor::new(text.as_bytes()).string("").unwrap();
        assert!(matches!(read("\"plain\""), Cow::Borrowed("plain")));
        assert_eq!(read(r#""a\tb\u00e9\ud83d\ude00c\"""#), "a\tbé😀c\"");
        assert_eq!(read(r#""\n""#), "\n");
        assert_eq!(read(r#""""#), "");
    }

    #[test]
    fn depth_is_bounded_without_recursion() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert_eq!(skip(&nested(64)), Ok(()));
        assert_eq!(skip(&nested(65)), Err(Unexpected { at: 64, expected: "at most 64 levels of nesting" }));
        assert_eq!(skip(&"[{\"a\":".repeat(1_000_000)).map_err(|error| error.expected), Err("at most 64 levels of nesting"));
        let mixed = format!("{}1{}", "{\"k\":[".repeat(32), "]}".repeat(32));
        assert_eq!(skip(&mixed), Ok(()));
        assert_eq!(skip(&mixed.replace("]}", "}]")).map_err(|error| error.expected), Err("',' or ']'"));
    }

    #[test]
    fn what_was_found_is_shown_shortly() {
        let show = |text: &str| Found(text.as_bytes()).to_string();
        assert_eq!(show("1.0,2"), "1.0");
        assert_eq!(show("null]"), "null");
        assert_eq!(show(&"9".repeat(100)), format!("{}…", "9".repeat(24)));
        assert_eq!(show("\"secret\""), "a string");
        assert_eq!(show(""), "the end");
        assert_eq!(show("}"), "'}'");
        assert_eq!(show("\u{1}"), "the byte 0x01");
        assert_eq!(show("é"), "the byte 0xc3");
    }
}
