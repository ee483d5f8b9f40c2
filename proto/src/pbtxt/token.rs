//! Cuts text into tokens, each with the byte offset it starts at.

use std::borrow::Cow;

use super::Problem;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token<'a> {
    Name(&'a str),
    /// Digits without sign or prefix.
    Integer {
        digits: &'a str,
        radix: u32,
    },
    Float(f64),
    /// The bytes that a quoted literal stands for.
    Text(Cow<'a, [u8]>),
    /// One of `{}<>[]:,;-`.
    Mark(char),
    End,
}

#[derive(Clone, Debug)]
pub(super) struct Tokens<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Tokens<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        // A byte order mark is what some editors leave at the start of a file.
        let at = text.len() - text.trim_start_matches('\u{feff}').len();
        Self { text, at }
    }

    /// The next token and its offset; after the last one, [`Token::End`] for ever.
    pub(super) fn next(&mut self) -> Result<(Token<'a>, usize), (Problem, usize)> {
        self.skip_blank();
        let start = self.at;
        let Some(first) = self.rest().chars().next() else {
            return Ok((Token::End, start));
        };
        let token = match first {
            'a'..='z' | 'A'..='Z' | '_' => Ok(Token::Name(self.take_while(|c| c.is_ascii_alphanumeric() || c == '_'))),
            '0'..='9' => self.number(),
            '.' if self.rest()[1..].starts_with(|c: char| c.is_ascii_digit()) => self.number(),
            '"' | '\'' => self.quoted(first),
            '{' | '}' | '<' | '>' | '[' | ']' | ':' | ',' | ';' | '-' => {
                self.at += 1;
                Ok(Token::Mark(first))
            }
            _ => Err((Problem::Malformed("a character that begins no value"), start)),
        };
        token.map(|token| (token, start))
    }

    /// The source between two offsets that tokens started or ended at.
    pub(super) fn source(&self, start: usize) -> &'a str {
        &self.text[start..self.at]
    }

    /// Line and column of an offset, both counted from 1.
    pub(super) fn place(&self, offset: usize) -> (usize, usize) {
        let before = &self.text[..offset];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.matches('\n').count() + 1;
        (line, before[line_start..].chars().count() + 1)
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn take_while(&mut self, accept: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|c| !accept(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn skip_blank(&mut self) {
        loop {
            self.take_while(|c| c.is_ascii_whitespace() || c == '\u{b}');
            if !self.rest().starts_with('#') {
                return;
            }
            self.take_while(|c| c != '\n');
        }
    }

    /// An integer in base 10, 8 (leading 0) or 16 (leading 0x), or a float with an optional `f`.
    fn number(&mut self) -> Result<Token<'a>, (Problem, usize)> {
        let start = self.at;
        let rest = self.rest();
        if let Some(hex) = rest.strip_prefix("0x").or_else(|| rest.strip_prefix("0X")) {
            self.at += 2;
            let len = hex.len() - hex.trim_start_matches(|c: char| c.is_ascii_hexdigit()).len();
            let digits = &self.take_while(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.');
            return if len > 0 && digits.len() == len {
                Ok(Token::Integer { digits, radix: 16 })
            } else {
                Err((Problem::Malformed("a malformed hexadecimal number"), start))
            };
        }
        let literal = self.decimal();
        let digits_only = literal.bytes().all(|b| b.is_ascii_digit());
        if digits_only && literal.len() > 1 && literal.starts_with('0') {
            let digits = &literal[1..];
            return if digits.bytes().all(|b| b < b'8') {
                Ok(Token::Integer { digits, radix: 8 })
            } else {
                Err((Problem::Malformed("a malformed octal number"), start))
            };
        }
        if digits_only {
            return Ok(Token::Integer { digits: literal, radix: 10 });
        }
        literal
            .strip_suffix(['f', 'F'])
            .unwrap_or(literal)
            .parse()
            .map(Token::Float)
            .map_err(|_| (Problem::Malformed("a malformed number"), start))
    }

    /// Everything up to the end of a decimal literal, letters that make it malformed included.
    fn decimal(&mut self) -> &'a str {
        let mut previous = '0';
        let rest = self.rest();
        let end = rest
            .find(|c: char| {
                let exponent_sign = matches!(c, '+' | '-') && matches!(previous, 'e' | 'E');
                previous = c;
                !(c.is_ascii_alphanumeric() || c == '.' || c == '_' || exponent_sign)
            })
            .unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn quoted(&mut self, quote: char) -> Result<Token<'a>, (Problem, usize)> {
        let start = self.at;
        self.at += 1;
        let plain = self.take_while(|c| c != quote && c != '\\' && c != '\n');
        if self.rest().starts_with(quote) {
            self.at += 1;
            return Ok(Token::Text(Cow::Borrowed(plain.as_bytes())));
        }
        let mut bytes = plain.as_bytes().to_vec();
        loop {
            match self.rest().chars().next() {
                None | Some('\n') => {
                    return Err((Problem::Malformed("a text without its closing quote"), start));
                }
                Some('\\') => self.escape(&mut bytes)?,
                Some(c) if c == quote => {
                    self.at += 1;
                    return Ok(Token::Text(Cow::Owned(bytes)));
                }
                Some(_) => {
                    let plain = self.take_while(|c| c != quote && c != '\\' && c != '\n');
                    bytes.extend_from_slice(plain.as_bytes());
                }
            }
        }
    }

    fn escape(&mut self, bytes: &mut Vec<u8>) -> Result<(), (Problem, usize)> {
        let start = self.at;
        let malformed = (Problem::Malformed("a malformed escape in a text"), start);
        self.at += 1;
        let Some(kind) = self.rest().chars().next() else {
            return Err(malformed);
        };
        if kind.is_digit(8) {
            // Three octal digits reach 511; what exceeds a byte is refused.
            let value = self.digits(8, 3);
            let byte = value.and_then(|value| u8::try_from(value).ok());
            bytes.push(byte.ok_or(malformed)?);
            return Ok(());
        }
        self.at += kind.len_utf8();
        let byte = match kind {
            'a' => 0x07,
            'b' => 0x08,
            'f' => 0x0c,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 0x0b,
            '\\' | '\'' | '"' | '?' => kind as u8,
            'x' | 'X' => {
                let value = self.digits(16, 2);
                value.and_then(|value| u8::try_from(value).ok()).ok_or(malformed)?
            }
            'u' | 'U' => {
                let length = if kind == 'u' { 4 } else { 8 };
                let before = self.at;
                let value = self.digits(16, length);
                let c = value.filter(|_| self.at - before == length).and_then(char::from_u32).ok_or(malformed)?;
                bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            _ => return Err(malformed),
        };
        bytes.push(byte);
        Ok(())
    }

    /// One to `most` digits as a number, or `None` where there is none.
    fn digits(&mut self, radix: u32, most: usize) -> Option<u32> {
        let rest = self.rest();
        let count = rest.chars().take(most).take_while(|c| c.is_digit(radix)).count();
        self.at += count;
        u32::from_str_radix(&rest[..count], radix).ok()
    }
}
