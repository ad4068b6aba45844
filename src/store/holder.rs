//! The column `holder`: host, process, thread and note of a holder, for people to read.

use std::sync::Arc;

/// What a holder says about itself, besides where it runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct About {
    /// Its thread, by the operating system's number.
    pub thread: Option<i64>,
    /// What it holds the lock for.
    pub note: Option<Arc<str>>,
}

impl About {
    /// The value for the column `holder`.
    pub(super) fn of(&self, host: &str, process: u32) -> String {
        let place = match self.thread {
            Some(thread) => format!("{host}:{process}:{thread}"),
            None => format!("{host}:{process}"),
        };
        match &self.note {
            Some(note) => format!("{place} {note}"),
            None => place,
        }
    }
}

/// The holder, parsed from the column `holder`: `host:process`, optionally `:thread`, then
/// optionally a blank and a note. Anything else is ignored.
#[derive(Debug, Default, PartialEq)]
pub struct Holder {
    pub host: Option<String>,
    pub process: Option<i64>,
    pub thread: Option<i64>,
    pub note: Option<String>,
}

impl Holder {
    pub fn parse(text: &str) -> Holder {
        let (place, note) = match text.split_once(' ') {
            Some((place, note)) => (place, Some(note.to_owned())),
            None => (text, None),
        };
        let mut parts = place.split(':');
        let host = parts.next().filter(|host| !host.is_empty());
        let (process, thread) = (parts.next(), parts.next());
        let understood = Holder {
            host: host.map(str::to_owned),
            process: process.and_then(number),
            thread: thread.and_then(number),
            note,
        };
        let whole = understood.host.is_some()
            && understood.process.is_some()
            && understood.thread.is_some() == thread.is_some()
            && parts.next().is_none();
        if whole { understood } else { Holder::default() }
    }
}

/// The number of a process or a thread.
fn number(text: &str) -> Option<i64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(host: &str, process: i64, thread: Option<i64>, note: Option<&str>) -> Holder {
        Holder {
            host: Some(host.to_owned()),
            process: Some(process),
            thread,
            note: note.map(str::to_owned),
        }
    }

    #[test]
    fn a_holder_is_read() {
        assert_eq!(Holder::parse("web1:17"), holder("web1", 17, None, None));
        assert_eq!(
            Holder::parse("web1:17:18"),
            holder("web1", 17, Some(18), None)
        );
        assert_eq!(
            Holder::parse("web1:17:18 a: note: 5"),
            holder("web1", 17, Some(18), Some("a: note: 5"))
        );
        assert_eq!(
            Holder::parse("web1:17 note"),
            holder("web1", 17, None, Some("note"))
        );
    }

    #[test]
    fn what_is_no_holder_says_nothing() {
        for text in [
            "",
            ":",
            ":17",
            "web1",
            "web1:",
            "web1:x",
            "web1:-1",
            "web1:+1",
            "web1:17:",
            "web1:17:x",
            "web1:1:2:3",
            "web1:99999999999999999999",
            " web1:17",
            "a b:17",
        ] {
            assert_eq!(Holder::parse(text), Holder::default(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_is_read(
            host in "[a-zA-Z0-9._-]{1,20}", process: u32, thread: Option<u32>,
            note in proptest::option::of("\\PC{1,20}"),
        ) {
            let thread = thread.map(i64::from);
            let about = About { thread, note: note.clone().map(Arc::from) };
            let read = Holder::parse(&about.of(&host, process));
            proptest::prop_assert_eq!(read, holder(&host, i64::from(process), thread, note.as_deref()));
        }

        #[test]
        fn any_text_is_read(text in "\\PC{0,40}") {
            let _ = Holder::parse(&text);
        }
    }
}
