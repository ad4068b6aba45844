//! The token of a hold: its bearer may extend or release the hold.

use rand::TryRng;
use rand::rngs::SysRng;
use std::fmt;
use std::sync::Arc;

/// 128 bytes from the operating system's random source, as 256 lower-case hex digits.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Token(Arc<str>);

impl Token {
    const BYTES: usize = 128;

    /// A fresh token.
    ///
    /// # Panics
    ///
    /// If the operating system cannot provide random bytes: a predictable token would be worse.
    #[must_use]
    pub fn random() -> Token {
        let mut bytes = [0; Token::BYTES];
        SysRng
            .try_fill_bytes(&mut bytes)
            .expect("the operating system must provide random bytes");
        let mut digits = [0; 2 * Token::BYTES];
        // It only fails if the buffer has a different length.
        hex::encode_to_slice(bytes, &mut digits).expect("two digits for each byte");
        let digits = std::str::from_utf8(&digits).expect("digits are ASCII");
        Token(digits.into())
    }

    /// `None` if this is anything but 256 lower-case hex digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Token> {
        let well_formed = text.len() == 2 * Token::BYTES
            && text
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        well_formed.then(|| Token(text.into()))
    }

    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A token never appears in a log or a message: not even `{:?}` shows it.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_tokens_are_well_formed_and_differ() {
        let token = Token::random();
        assert_eq!(Token::parse(token.as_str()), Some(token.clone()));
        assert_ne!(Token::random(), token);
    }

    #[test]
    fn nothing_else_is_a_token() {
        let good = Token::random().as_str().to_owned();
        for bad in [
            String::new(),
            good[1..].to_owned(),
            format!("{good}0"),
            good.replace(|c: char| c.is_ascii_digit(), "g"),
            format!("{}A", &good[1..]),
        ] {
            assert_eq!(Token::parse(&bad), None);
        }
    }

    #[test]
    fn a_token_is_not_printed() {
        let token = Token::random();
        assert!(!format!("{token:?}").contains(&token.as_str()[..8]));
    }

    proptest::proptest! {
        #[test]
        fn a_token_is_its_digits(text in "[0-9a-fA-Fg\\PC]{254,258}|[0-9a-f]{255,257}") {
            let hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
            let right = text.chars().count() == 256 && text.chars().all(hex);
            let read = Token::parse(&text);
            proptest::prop_assert_eq!(read.as_ref().map(Token::as_str), right.then_some(&*text));
        }
    }
}
