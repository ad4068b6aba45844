//! `require_auth`: which authentication methods the server may ask for. `tokio-postgres` has no
//! such option and does whatever the server asks, even sending the password in plain text. So the
//! stream checks the server's first message before the library sees it.

use super::url::{AuthMethod, RequireAuth};
use std::io::{Error, Result};

/// Watches what the server sends until it is clear which method it asks for.
#[derive(Debug)]
pub struct Watch {
    required: RequireAuth,
    /// The server first answers whether it has TLS.
    negotiated: bool,
    head: Vec<u8>,
}

impl Watch {
    /// Watches a stream from its first byte, which may be an answer about TLS.
    pub fn new(required: RequireAuth, negotiated: bool) -> Watch {
        Watch {
            required,
            negotiated,
            head: Vec::new(),
        }
    }

    /// Takes in what was read. `true` when there is nothing more to watch for; an error if the
    /// server asks for a forbidden method.
    pub fn read(&mut self, mut bytes: &[u8]) -> Result<bool> {
        if self.negotiated && !bytes.is_empty() {
            self.negotiated = false;
            if bytes[0] != b'N' {
                // TLS begins, and inside it another watch; or this is an error.
                return Ok(true);
            }
            bytes = &bytes[1..];
        }
        self.head.extend_from_slice(bytes);
        // The message's type and length, and for an `R`, Authentication, the method.
        let Some((begin, _)) = self.head.split_first_chunk::<9>() else {
            return Ok(self.head.first().is_some_and(|kind| *kind != b'R'));
        };
        let [b'R', _, _, _, _, code @ ..] = *begin else {
            return Ok(true);
        };
        let method = match u32::from_be_bytes(code) {
            0 => AuthMethod::None,
            3 => AuthMethod::Password,
            5 => AuthMethod::Md5,
            7 => AuthMethod::Gss,
            9 => AuthMethod::Sspi,
            // The only SASL mechanisms that the library knows.
            10 => AuthMethod::ScramSha256,
            other => return Err(Error::other(format!("the server asks for login {other}"))),
        };
        if self.required.allows(method) {
            Ok(true)
        } else {
            Err(Error::other(format!(
                "require_auth does not allow what the server asks for: {}",
                method.word()
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn required(methods: &[AuthMethod]) -> RequireAuth {
        RequireAuth {
            methods: methods.to_vec(),
            negated: false,
        }
    }

    fn asks(code: u8) -> Vec<u8> {
        vec![b'R', 0, 0, 0, 8, 0, 0, 0, code]
    }

    #[test]
    fn what_is_not_allowed_is_noticed_however_it_arrives() {
        for negotiated in [false, true] {
            let mut message = asks(3);
            if negotiated {
                message.insert(0, b'N');
            }
            for cut in 0..message.len() {
                let scram = required(&[AuthMethod::ScramSha256]);
                let mut watch = Watch::new(scram, negotiated);
                let answers = [&message[..cut], &message[cut..]].map(|part| watch.read(part));
                let [first, last] = answers;
                assert!(!first.unwrap());
                assert!(last.unwrap_err().to_string().ends_with("password"));
            }
        }
    }

    #[test]
    fn what_is_allowed_passes_and_so_do_errors_and_tls() {
        let watch = |negotiated| Watch::new(required(&[AuthMethod::ScramSha256]), negotiated);
        assert!(watch(false).read(&asks(10)).unwrap());
        assert!(watch(false).read(b"E").unwrap());
        assert!(watch(true).read(b"S").unwrap());
        assert!(watch(false).read(&asks(0)).is_err());
    }
}
