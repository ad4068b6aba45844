//! The name of a lock.

use std::fmt;
use std::sync::Arc;

/// Any text without NUL, even an empty one: what PostgreSQL's `varchar` can hold.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Name(Arc<str>);

impl Name {
    /// `None` if the text contains NUL.
    #[must_use]
    pub fn new(text: &str) -> Option<Name> {
        (!text.contains('\0')).then(|| Name(text.into()))
    }

    /// The text itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// As Python shows it in messages.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("'")?;
        for letter in self.as_str().chars() {
            match letter {
                '"' => f.write_str("\"")?,
                _ => write!(f, "{}", letter.escape_debug())?,
            }
        }
        f.write_str("'")
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Name({:?})", self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_without_nul_is_a_name() {
        assert_eq!(Name::new("").unwrap().as_str(), "");
        assert_eq!(Name::new("ключ 🔑").unwrap().as_str(), "ключ 🔑");
        assert!(Name::new("a\0b").is_none());
    }

    #[test]
    fn a_message_shows_where_a_name_begins_and_ends() {
        assert_eq!(Name::new("a \n").unwrap().to_string(), r"'a \n'");
        assert_eq!(
            Name::new(r#"it's "a""#).unwrap().to_string(),
            r#"'it\'s "a"'"#
        );
    }

    proptest::proptest! {
        #[test]
        fn a_name_is_its_text(text in proptest::prelude::any::<String>()) {
            match Name::new(&text) {
                Some(name) => {
                    proptest::prop_assert_eq!(name.as_str(), &text);
                    proptest::prop_assert!(!name.to_string().chars().any(char::is_control));
                }
                None => proptest::prop_assert!(text.contains('\0')),
            }
        }
    }
}
