//! A controller at the other end of Softnet's channel (`--control-fd`), as Tart is one.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::deadline::PATIENCE;

/// The controller. No call waits for longer than the usual patience.
#[derive(Debug)]
pub struct Controller {
    /// What is written here is sent as it is.
    pub stream: UnixStream,
    /// What Softnet sends.
    pub answers: BufReader<UnixStream>,
}

impl Controller {
    /// A controller, and Softnet's end of its channel.
    ///
    /// # Errors
    /// If the system gives no sockets.
    pub fn pair() -> Result<(Self, OwnedFd)> {
        let (stream, theirs) = UnixStream::pair()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let answers = BufReader::new(stream.try_clone()?);
        Ok((Self { stream, answers }, theirs.into()))
    }

    /// Sends `text` as it is.
    ///
    /// # Errors
    /// If Softnet does not take it.
    pub fn say(&mut self, text: &str) -> Result<()> {
        self.stream.write_all(text.as_bytes()).context("write to the channel")
    }

    /// The next line.
    ///
    /// # Errors
    /// If there is none, or it is not JSON.
    pub fn answer(&mut self) -> Result<Value> {
        let mut line = String::new();
        let length = self.answers.read_line(&mut line).context("read from the channel")?;
        ensure!(length > 0, "the channel was closed");
        serde_json::from_str(&line).with_context(|| format!("no JSON: {line:?}"))
    }

    /// Sends one request, and returns the result or the error in its answer.
    ///
    /// # Errors
    /// If the answer is not one to this request.
    pub fn ask(&mut self, id: &Value, method: &str, params: &Value) -> Result<Value> {
        let request = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        self.say(&format!("{request}\n"))?;
        let mut answer = self.answer()?;
        ensure!(answer["jsonrpc"] == "2.0" && answer["id"] == *id, "to {request}: {answer}");
        let members = answer.as_object_mut().context("no object")?;
        let (result, error) = (members.remove("result"), members.remove("error"));
        ensure!(members.len() == 2 && result.is_some() != error.is_some(), "to {request}: {answer}");
        result.or(error).context("unreachable")
    }

    /// Replaces the policy.
    ///
    /// # Errors
    /// Those of [`Controller::ask`].
    pub fn set(&mut self, allow: &[&str], block: &[&str]) -> Result<Value> {
        self.ask(&json!(1), "softnet.policy.set", &json!({"allow": allow, "block": block}))
    }

    /// The policy in force.
    ///
    /// # Errors
    /// Those of [`Controller::ask`].
    pub fn get(&mut self) -> Result<Value> {
        self.ask(&json!("again"), "softnet.policy.get", &Value::Null)
    }

    /// Everything that was not read yet, once Softnet has ended.
    ///
    /// # Errors
    /// If a process still has Softnet's end.
    pub fn rest(mut self) -> Result<String> {
        let mut rest = String::new();
        self.answers.read_to_string(&mut rest).context("wait for the end of the channel")?;
        Ok(rest)
    }
}
