//! What a machine says, as it says it.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read},
};

use serde::{Deserialize, Serialize};

use super::{
    guest::{SIGN, Word},
    machine::REFUSAL,
};

/// How a test ended.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    /// It was right.
    Passed,
    /// It was wrong, or never ended.
    Failed,
    /// It was not run, and said so.
    Ignored,
    /// It cannot be right on this kernel, for this reason.
    Missing(String),
}

/// All that a machine has said.
#[derive(Debug, Default)]
pub(crate) struct Log {
    /// As `uname -r` says it.
    pub(crate) release: Option<String>,
    /// Tests as `suite/module::name`.
    pub(crate) tests: BTreeMap<String, Outcome>,
    /// What went wrong beside the tests.
    pub(crate) troubles: Vec<String>,
    /// Tests that began and never ended; they count as failed.
    pub(crate) endless: Vec<String>,
    /// Whether it came to its end.
    pub(crate) is_done: bool,
    suite: String,
    running: Vec<String>,
}

/// A line of a test program's `--format json`.
#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    #[serde(rename = "event")]
    what: String,
    name: Option<String>,
}

/// Something to show to whoever waits.
#[derive(Debug, PartialEq)]
pub(crate) enum News {
    /// A test program begins.
    Suite(String),
    /// A test has ended so.
    Test(String, Outcome),
    /// Text.
    Text(String),
}

impl Log {
    /// Reads until the machine is off.
    pub(crate) fn read(&mut self, from: impl Read, mut tell: impl FnMut(News)) {
        let mut lines = BufReader::new(from).split(b'\n');
        while let Some(Ok(line)) = lines.next() {
            let line = String::from_utf8_lossy(&line);
            if let Some(news) = self.line(line.trim_end()) {
                tell(news);
            }
        }
        for test in std::mem::take(&mut self.running) {
            self.troubles.push(format!("{test} did not end"));
            self.tests.insert(test.clone(), Outcome::Failed);
            self.endless.push(test);
        }
    }

    fn line(&mut self, line: &str) -> Option<News> {
        if let Some(word) = line.strip_prefix(SIGN) {
            return self.word(word);
        }
        let Ok(event) = serde_json::from_str::<Event>(line) else {
            return (!line.is_empty()).then(|| News::Text(line.to_owned()));
        };
        let name = event.name.filter(|_| event.kind == "test")?;
        let name = format!("{}/{name}", self.suite);
        let outcome = match event.what.as_str() {
            "started" => {
                self.running.push(name);
                return None;
            }
            "ok" => Outcome::Passed,
            "ignored" => Outcome::Ignored,
            _ => Outcome::Failed,
        };
        self.running.retain(|running| *running != name);
        self.tests.insert(name.clone(), outcome.clone());
        Some(News::Test(name, outcome))
    }

    fn word(&mut self, word: &str) -> Option<News> {
        match serde_json::from_str(word) {
            Ok(Word::Booted { release }) => self.release = Some(release),
            Ok(Word::NoModule { name, reason }) => {
                self.troubles
                    .push(format!("cannot load the module {name}: {reason}"));
            }
            Ok(Word::Begins { suite }) => {
                self.suite.clone_from(&suite);
                return Some(News::Suite(suite));
            }
            // 101 and 1 are for tests that failed, which is known by then.
            Ok(Word::Ended {
                code: Some(0 | 101 | 1),
                ..
            }) => {}
            // Its judge reads what it says.
            Ok(Word::Ended {
                suite,
                code: Some(125),
            }) if suite == REFUSAL => {}
            Ok(Word::Ended { suite, code }) => {
                let how = code.map_or("by a signal".to_owned(), |code| format!("with code {code}"));
                self.troubles.push(format!("{suite} ended {how}"));
            }
            Ok(Word::Done) => self.is_done = true,
            Ok(Word::Failed { reason }) => self.troubles.push(reason),
            Err(error) => self.troubles.push(format!("{word}: {error}")),
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_that_did_not_end_has_failed() {
        let text = concat!(
            "@lockne {\"Booted\":{\"release\":\"6.1\"}}\r\n",
            "@lockne {\"Begins\":{\"suite\":\"lab\"}}\r\n",
            "{ \"type\": \"test\", \"event\": \"started\", \"name\": \"a::b\" }\n",
            "{ \"type\": \"test\", \"name\": \"a::b\", \"event\": \"ok\" }\n",
            "{ \"type\": \"test\", \"event\": \"started\", \"name\": \"a::c\" }\n",
        );
        let mut log = Log::default();
        let mut news = Vec::new();

        log.read(text.as_bytes(), |new| news.push(new));

        assert_eq!(log.release.as_deref(), Some("6.1"));
        assert_eq!(log.tests["lab/a::b"], Outcome::Passed);
        assert_eq!(log.tests["lab/a::c"], Outcome::Failed);
        assert!(!log.is_done);
        assert_eq!(
            news,
            [
                News::Suite("lab".to_owned()),
                News::Test("lab/a::b".to_owned(), Outcome::Passed)
            ]
        );
    }
}
