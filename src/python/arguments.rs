//! Names and tokens as Python passes them.

use super::errors::exception;
use super::finalizing::ours;
use crate::engine::{Name, Token};
use crate::error::Error;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyString, PyTuple};

/// A bool, or `None` for the configured value. Nothing else is accepted.
pub fn choice(value: Option<&Bound<'_, PyAny>>, key: &str) -> PyResult<Option<bool>> {
    value.map_or(Ok(None), |value| flag(value, "choice", key))
}

/// A bool with a default.
pub fn flag_or(default: bool, value: Option<&Bound<'_, PyAny>>, key: &str) -> PyResult<bool> {
    value.map_or(Ok(default), |value| {
        flag(value, "flag", key).map(|flag| flag.unwrap_or(default))
    })
}

fn flag(value: &Bound<'_, PyAny>, parser: &str, key: &str) -> PyResult<Option<bool>> {
    if let Ok(flag) = value.cast::<PyBool>() {
        return Ok(Some(flag.is_true()));
    }
    ours(value.py(), "_config", parser, (value, key))?.extract()
}

/// Rejects positional arguments where only the keyword `key` is accepted.
pub fn named(given: &Bound<'_, PyTuple>, call: &str, key: &str) -> PyResult<()> {
    if given.is_empty() {
        return Ok(());
    }
    // Do not show the argument: it may be a token.
    Err(PyTypeError::new_err(format!(
        "{key} is given by its name: write {call}{key}=…)"
    )))
}

fn type_name(value: &Bound<'_, PyAny>) -> String {
    value
        .get_type()
        .name()
        .map_or_else(|_| "?".to_owned(), |name| name.to_string())
}

/// The start of a name, for a message.
fn beginning(shown: &str) -> String {
    shown.chars().take(100).collect()
}

/// A name: any `str` without NUL.
pub fn name(value: &Bound<'_, PyAny>) -> PyResult<Name> {
    let text = value.cast::<PyString>().map_err(|_| {
        PyTypeError::new_err(format!(
            "the name of a lock must be a str, not {}",
            type_name(value)
        ))
    })?;
    let text = text.to_str().map_err(|_| {
        PyValueError::new_err(format!(
            "the name of a lock must not contain half of a surrogate pair, which UTF-8 cannot \
             encode: {}",
            text.repr().map_or_else(
                |_| "?".to_owned(),
                |shown| beginning(&shown.to_string_lossy())
            )
        ))
    })?;
    Name::new(text).ok_or_else(|| {
        PyValueError::new_err(format!(
            "the name of a lock must not contain NUL, which PostgreSQL cannot store: {}",
            beginning(&format!("{text:?}"))
        ))
    })
}

/// A token, as `str` or `bytes`; an empty one counts as none, as in 0.2.5.
///
/// A malformed token is treated like one that matches no hold.
pub fn token(name: &Name, value: Option<&Bound<'_, PyAny>>) -> PyResult<Option<Token>> {
    let Some(value) = value else {
        return Ok(None);
    };
    let text = if let Ok(text) = value.cast::<PyString>() {
        text.to_string_lossy().into_owned()
    } else if let Ok(bytes) = value.cast::<PyBytes>() {
        String::from_utf8_lossy(bytes.as_bytes()).into_owned()
    } else {
        return Err(PyTypeError::new_err(format!(
            "a token must be a str or bytes, not {}",
            type_name(value)
        )));
    };
    if text.is_empty() {
        return Ok(None);
    }
    Token::parse(&text)
        .map(Some)
        .ok_or_else(|| exception(value.py(), Error::NotAToken(name.clone(), text)))
}
