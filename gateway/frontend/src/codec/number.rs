//! Numbers as JSON writes them.
//!
//! A number is scanned once, its first nineteen digits gathered on the way; what those don't decide exactly is left to the standard
//! library's correctly rounded parser. Deliberately absent: tolerance for leading zeros, plus signs and bare dots.

use half::f16;

/// A scanned number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Number<'a> {
    token: &'a [u8],
    negative: bool,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    NaN,
    Infinity,
    Finite {
        /// The digits, without leading zeros, as far as nineteen reach.
        digits: u64,
        /// Whether `digits` has all of them.
        exact: bool,
        /// The power of ten that `digits` is to be multiplied with; right only where `exact`.
        exponent: i32,
        /// No fraction and no exponent were written.
        whole: bool,
    },
}

/// Powers of ten that a double holds exactly.
const POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22,
];

/// Their inverses, wrong by half of the last bit at the most.
const INVERSES: [f64; 23] = [
    1e0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-11, 1e-12, 1e-13, 1e-14, 1e-15, 1e-16, 1e-17, 1e-18,
    1e-19, 1e-20, 1e-21, 1e-22,
];

/// The largest power of two below which a double holds every whole number.
const EXACT_WHOLE: u64 = 1 << 53;

impl<'a> Number<'a> {
    /// Reads the number at the start of `text`, and tells its length; `None` where there is none.
    #[inline(always)]
    pub(crate) fn scan(text: &'a [u8]) -> Option<(Number<'a>, usize)> {
        let negative = text.first() == Some(&b'-');
        let start = usize::from(negative);
        let (kind, length) = match text.get(start)? {
            b'0'..=b'9' => match scan_plain(text, start) {
                Some(plain) => plain,
                None => scan_finite(text, start)?,
            },
            b'I' => (Kind::Infinity, start + word(&text[start..], b"Infinity")?),
            b'N' if !negative => (Kind::NaN, start + word(&text[start..], b"NaN")?),
            _ => return None,
        };
        Some((Number { token: &text[..length], negative, kind }, length))
    }

    /// How many bytes it was written in.
    pub(crate) fn len(&self) -> usize {
        self.token.len()
    }

    /// The value, where it is a whole number from 0 on that fits and was written as one.
    pub(crate) fn unsigned(&self) -> Option<u64> {
        match self.kind {
            Kind::Finite { digits, exact: true, whole: true, .. } if !self.negative || digits == 0 => Some(digits),
            _ => None,
        }
    }

    /// The value, where it is a whole number that fits and was written as one.
    pub(crate) fn signed(&self) -> Option<i64> {
        match self.kind {
            Kind::Finite { digits, exact: true, whole: true, .. } if self.negative => 0i64.checked_sub_unsigned(digits),
            Kind::Finite { digits, exact: true, whole: true, .. } => i64::try_from(digits).ok(),
            _ => None,
        }
    }

    /// The nearest double; beyond the largest it is infinite.
    pub(crate) fn f64(&self) -> f64 {
        // Of two numbers that a double holds exactly, the product and the quotient are exactly rounded, as Clinger describes.
        match self.decimal() {
            Some((digits, place, false)) if digits <= EXACT_WHOLE => self.signed_as(digits as f64 * POWERS[place]),
            Some((digits, place, true)) if digits <= EXACT_WHOLE => self.signed_as(digits as f64 / POWERS[place]),
            _ => self.parsed(),
        }
    }

    /// The nearest single; beyond the largest it is infinite.
    #[inline]
    pub(crate) fn f32(&self) -> f32 {
        // The bits of a double that a single has no room for, and how near to the middle between two singles a double may lie that is
        // wrong by less than two of its last bits, as these are: there rounding twice would err.
        const CUT: u64 = 0x1fff_ffff;
        const MIDDLE: u64 = 0x1000_0000;
        const NEAR: u64 = 4;
        let Some((digits, place, is_fraction)) = self.decimal() else { return self.parsed() };
        let value = digits as f64 * if is_fraction { INVERSES[place] } else { POWERS[place] };
        if (value.to_bits() & CUT).abs_diff(MIDDLE) > NEAR { self.signed_as(value) as f32 } else { self.parsed() }
    }

    /// The half that is nearest to the nearest double; beyond the largest it is infinite.
    pub(crate) fn f16(&self) -> f16 {
        f16::from_f64(self.f64())
    }

    /// All its digits and the power of ten that multiplies them, or that divides them where the last is true; `None` where a word does not
    /// hold the digits or a double the power.
    #[inline]
    fn decimal(&self) -> Option<(u64, usize, bool)> {
        let Kind::Finite { digits, exact: true, exponent, .. } = self.kind else { return None };
        let place = usize::try_from(exponent.unsigned_abs()).ok().filter(|place| *place < POWERS.len())?;
        Some((digits, place, exponent < 0))
    }

    #[inline]
    fn signed_as(&self, value: f64) -> f64 {
        if self.negative { -value } else { value }
    }

    #[inline(never)]
    fn parsed<F: std::str::FromStr + From<f32>>(&self) -> F {
        // A scanned token is always one that the standard library reads.
        let text = str::from_utf8(self.token).unwrap_or("NaN");
        text.parse().unwrap_or_else(|_| F::from(f32::NAN))
    }
}

fn word(text: &[u8], word: &[u8]) -> Option<usize> {
    let ends = text.starts_with(word) && !text.get(word.len()).is_some_and(u8::is_ascii_alphanumeric);
    ends.then_some(word.len())
}

/// Digits on their way into a number.
struct Digits {
    value: u64,
    count: u32,
    exact: bool,
}

impl Digits {
    fn push(&mut self, digit: u8) {
        if self.count < 19 {
            self.value = self.value * 10 + u64::from(digit - b'0');
            self.count += u32::from(self.value != 0);
        } else {
            match self.value.checked_mul(10).and_then(|value| value.checked_add(u64::from(digit - b'0'))) {
                Some(value) if self.exact => {
                    self.value = value;
                    self.count += 1;
                }
                _ => self.exact = false,
            }
        }
    }
}

/// Powers of ten by how many digits they stand for, up to those of one word of text.
const SHIFTS: [u64; 9] = [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000];

/// The digits that eight bytes of text begin with, as a number, and how many they are. No step of it asks how many: a branch that goes
/// another way for each number would take longer than all the rest.
#[inline]
fn leading_digits(text: [u8; 8]) -> (u64, usize) {
    let digits = u64::from_le_bytes(text) ^ 0x3030_3030_3030_3030;
    // A byte above 9 carries into its highest bit; what it carries beyond that disturbs only bytes behind it.
    let others = (digits.wrapping_add(0x7676_7676_7676_7676) | digits) & 0x8080_8080_8080_8080;
    let count = (others.trailing_zeros() / 8) as usize;
    // Zeros come before the digits, in two steps since none at all are all the bits of the word.
    let behind = 64 - 8 * count as u32;
    let digits = (digits << (behind / 2)) << (behind - behind / 2);
    // Neighbours become numbers below 100, those numbers below 10 000, and those the whole.
    let pairs = digits.wrapping_mul(10).wrapping_add(digits >> 8);
    let high = (pairs & 0x0000_00ff_0000_00ff).wrapping_mul(100 + (1_000_000 << 32));
    let low = ((pairs >> 16) & 0x0000_00ff_0000_00ff).wrapping_mul(1 + (10_000 << 32));
    (high.wrapping_add(low) >> 32, count)
}

/// Reads digits into `value` and tells where they end. Of more than nineteen it makes no difference what they wrap to.
#[inline]
fn digits(text: &[u8], from: usize, value: &mut u64) -> usize {
    let mut at = from;
    while let Some(eight) = text.get(at..).and_then(<[u8]>::first_chunk) {
        let (number, count) = leading_digits(*eight);
        *value = value.wrapping_mul(SHIFTS[count]).wrapping_add(number);
        at += count;
        if count < 8 {
            return at;
        }
    }
    // The end of the text is near.
    while let Some(digit) = text.get(at).map(|byte| byte.wrapping_sub(b'0')).filter(|digit| *digit < 10) {
        *value = value.wrapping_mul(10).wrapping_add(u64::from(digit));
        at += 1;
    }
    at
}

/// A number as nearly all are written: nineteen digits at the most, and no exponent. `None` for any other, right or wrong.
#[inline(always)]
fn scan_plain(text: &[u8], start: usize) -> Option<(Kind, usize)> {
    // Most floats have one digit before the point, which is then found without reading a word.
    let mut value = u64::from(text[start] - b'0');
    let point = match text.get(start + 1) {
        Some(b'0'..=b'9') => digits(text, start + 1, &mut value),
        _ => start + 1,
    };
    let (end, fraction) = match text.get(point) {
        Some(b'.') => {
            let end = digits(text, point + 1, &mut value);
            (end, end - point - 1)
        }
        _ => (point, 0),
    };
    let is_whole = end == point;
    let has_leading_zero = text[start] == b'0' && point - start > 1;
    let has_exponent = matches!(text.get(end), Some(b'e' | b'E'));
    let count = point - start + fraction;
    if has_leading_zero || has_exponent || count > 19 || !is_whole && fraction == 0 {
        return None;
    }
    Some((Kind::Finite { digits: value, exact: true, exponent: -(fraction as i32), whole: is_whole }, end))
}

/// A number that begins with a digit at `start`, and where it ends.
#[inline(never)]
fn scan_finite(text: &[u8], start: usize) -> Option<(Kind, usize)> {
    let mut digits = Digits { value: 0, count: 0, exact: true };
    let mut at = start;
    let run = |at: usize| text.get(at).copied().filter(u8::is_ascii_digit);
    if text[start] == b'0' {
        at += 1;
    } else {
        while let Some(digit) = run(at) {
            digits.push(digit);
            at += 1;
        }
    }
    let mut exponent = 0i64;
    let mut whole = true;
    if text.get(at) == Some(&b'.') {
        whole = false;
        let point = at + 1;
        at = point;
        while let Some(digit) = run(at) {
            digits.push(digit);
            at += 1;
        }
        if at == point {
            return None;
        }
        exponent -= i64::try_from(at - point).ok()?;
    }
    if let Some(b'e' | b'E') = text.get(at) {
        whole = false;
        at += 1;
        let sign = text.get(at).copied().filter(|byte| matches!(byte, b'+' | b'-'));
        at += usize::from(sign.is_some());
        let first = at;
        let mut written = 0i64;
        while let Some(digit) = run(at) {
            written = written.saturating_mul(10).saturating_add(i64::from(digit - b'0'));
            at += 1;
        }
        if at == first {
            return None;
        }
        exponent = exponent.saturating_add(if sign == Some(b'-') { -written } else { written });
    }
    let exponent = i32::try_from(exponent).unwrap_or(if exponent < 0 { i32::MIN } else { i32::MAX });
    Some((Kind::Finite { digits: digits.value, exact: digits.exact, exponent, whole }, at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn leading_digits_are_what_they_say(number in 0..100_000_000u64, count in 0..=8usize, other: u8, behind: [u8; 8]) {
            prop_assume!(!other.is_ascii_digit());
            let number = number % SHIFTS[count];
            let mut text = behind;
            let written = if count == 0 { String::new() } else { format!("{number:0count$}") };
            text[..count].copy_from_slice(written.as_bytes());
            if let Some(next) = text.get_mut(count) {
                *next = other;
            }
            prop_assert_eq!(leading_digits(text), (number, count));
        }
    }

    fn scan(text: &str) -> Number<'_> {
        let (number, length) = Number::scan(text.as_bytes()).unwrap();
        assert_eq!(length, text.len(), "{text}");
        number
    }

    #[test]
    fn whole_numbers_keep_their_limits() {
        for (text, unsigned, signed) in [
            ("0", Some(0), Some(0)),
            ("-0", Some(0), Some(0)),
            ("18446744073709551615", Some(u64::MAX), None),
            ("18446744073709551616", None, None),
            ("9223372036854775807", Some(i64::MAX as u64), Some(i64::MAX)),
            ("-9223372036854775808", None, Some(i64::MIN)),
            ("-9223372036854775809", None, None),
            ("100000000000000000000000", None, None),
            ("1.0", None, None),
            ("1e2", None, None),
            ("NaN", None, None),
        ] {
            assert_eq!(scan(text).unsigned(), unsigned, "{text}");
            assert_eq!(scan(text).signed(), signed, "{text}");
        }
    }

    #[test]
    fn what_is_no_number_is_none_and_what_follows_one_is_left() {
        for text in ["", "-", "+1", ".5", "1.", "1.e3", "1e", "1e+", "abc", "-NaN", "Inf", "NaNs", "-x"] {
            assert!(Number::scan(text.as_bytes()).is_none(), "{text}");
        }
        for (text, length) in [("01", 1), ("1,2", 1), ("-3.5]", 4), ("1-2", 1), ("NaN,", 3)] {
            assert_eq!(Number::scan(text.as_bytes()).unwrap().1, length, "{text}");
        }
    }

    #[test]
    fn floats_beyond_their_type_are_infinite() {
        assert_eq!(scan("1e39").f32(), f32::INFINITY);
        assert_eq!(scan("-1e39").f32(), f32::NEG_INFINITY);
        assert_eq!(scan("1e999999999999999999999").f64(), f64::INFINITY);
        assert_eq!(scan("1e-999999999999999999999").f64(), 0.0);
        assert_eq!(scan("70000").f16(), f16::INFINITY);
        assert_eq!(scan("-Infinity").f32(), f32::NEG_INFINITY);
        assert!(scan("NaN").f64().is_nan());
        assert!(scan("-0.0").f64().is_sign_negative());
        assert_eq!(scan("0.00000000000000000000000000000000000000000001e44").f64(), 1.0);
    }

    #[test]
    fn halfway_doubles_do_not_round_twice() {
        // 1 + 2⁻²⁴ + 2⁻⁶⁰ lies just above the middle of two singles; as a double it is the middle.
        let text = "1.000000059604644776257";
        assert_eq!(scan(text).f32(), text.parse::<f32>().unwrap());
        assert_eq!(scan("16777217").f32(), 16_777_216.0);
        assert_eq!(scan("16777219").f32(), 16_777_220.0);
    }

    proptest! {
        #[test]
        fn floats_are_read_as_the_standard_library_reads_them(
            whole in "-?(0|[1-9][0-9]{0,25})", fraction in "(\\.[0-9]{1,25})?", exponent in "([eE][+-]?[0-9]{1,3})?"
        ) {
            let text = format!("{whole}{fraction}{exponent}");
            let number = scan(&text);
            prop_assert_eq!(number.f64().to_bits(), text.parse::<f64>().unwrap().to_bits());
            prop_assert_eq!(number.f32().to_bits(), text.parse::<f32>().unwrap().to_bits());
            // What follows belongs to another number, also where both lie in one word.
            let followed = format!("{text},0123456789.0123456789");
            let (number, length) = Number::scan(followed.as_bytes()).unwrap();
            prop_assert_eq!(length, text.len());
            prop_assert_eq!(number.f64().to_bits(), text.parse::<f64>().unwrap().to_bits());
        }

        #[test]
        fn written_floats_come_back(value in any::<f32>(), double in any::<f64>()) {
            let mut buffer = zmij::Buffer::new();
            if value.is_finite() {
                prop_assert_eq!(scan(buffer.format(value)).f32().to_bits(), value.to_bits());
            }
            if double.is_finite() {
                prop_assert_eq!(scan(buffer.format(double)).f64().to_bits(), double.to_bits());
            }
        }
    }
}
