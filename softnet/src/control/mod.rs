//! Controllers change the policy of a running VM and ask about it: JSON-RPC 2.0, one request or answer a line, over
//! stream sockets that were open before the seal (rules K1 to K3, P6).
//!
//! The event loop gives each connection at most one request a turn, so frames never wait for more than that. What a
//! controller sends or fails to read is bounded: a line of 1 MiB, 4,096 targets, 4 MiB of answers.

mod connection;
mod lines;
mod request;
mod revisions;
#[cfg(target_os = "linux")]
pub mod socket;

use serde_json::{Value, json};

pub use connection::{Connection, SocketError};
pub use request::{Methods, NewPolicy};

use request::{Code, Id, Method, Refusal, shown};
use revisions::{Revisions, Step};

/// A policy in normal form: sorted as text, and each entry once.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Listing {
    /// What the VM may reach.
    pub allow: Vec<String>,
    /// What it may not.
    pub block: Vec<String>,
}

/// Why a policy cannot be set.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SetError {
    /// An entry is wrong.
    Entry {
        /// `allow` or `block`.
        list: &'static str,
        /// Where in the list, from 0.
        index: usize,
        /// Why.
        reason: String,
    },
    /// The policy would turn the isolation of the bridge's ports on or off, which is decided at the start.
    Isolation,
    /// The filter cannot hold it.
    Filter(String),
}

/// The VM that controllers speak about.
pub trait Vm {
    /// A policy that is ready to be put in force.
    type Policy;

    /// The policy in force.
    fn policy(&self) -> Listing;

    /// Parses and compiles a policy, and changes nothing (rule K3).
    ///
    /// # Errors
    /// Which entry is wrong, and why.
    fn prepare(&self, new: &NewPolicy) -> Result<(Self::Policy, Listing), SetError>;

    /// Puts a policy in force, between two frames, whole or not at all (rule P6).
    ///
    /// # Errors
    /// When the filter cannot hold it; then nothing has changed.
    fn apply(&mut self, policy: Self::Policy, listing: &Listing) -> Result<(), SetError>;

    /// What passed and what was dropped, by reason.
    fn statistics(&self) -> Value;

    /// The VM's lease, or null.
    fn lease(&self) -> Value;
}

/// The controllers of one VM.
#[derive(Debug, Default)]
pub struct Control {
    revisions: Revisions,
}

impl Control {
    /// One turn of `connection`: at most one request is carried out and answered.
    pub fn turn(&mut self, connection: &mut Connection, vm: &mut impl Vm) {
        if let Some(request) = connection.take_request() {
            let answer = match request {
                Ok(request) => match self.perform(request.method, vm) {
                    Ok(result) => json!({"jsonrpc": "2.0", "id": id(Some(request.id)), "result": result}),
                    Err((code, reason)) => failure(Refusal { id: Some(request.id), code, reason }),
                },
                Err(refusal) => failure(refusal),
            };
            connection.answer(&answer.to_string());
        }
    }

    fn perform(&mut self, method: Method, vm: &mut impl Vm) -> Result<Value, (Code, String)> {
        match method {
            Method::GetPolicy => Ok(self.listing(&vm.policy())),
            Method::SetPolicy(new) => self.set(&new, vm),
            Method::GetStatistics => Ok(vm.statistics()),
            Method::GetLease => Ok(vm.lease()),
        }
    }

    fn set(&mut self, new: &NewPolicy, vm: &mut impl Vm) -> Result<Value, (Code, String)> {
        let (policy, listing) = vm.prepare(new).map_err(|error| refused(&error, new))?;
        let step = self
            .revisions
            .judge(new.revision.as_deref(), listing == vm.policy())
            .map_err(|reason| (Code::Revision, reason.to_owned()))?;
        if step == Step::Apply {
            vm.apply(policy, &listing).map_err(|error| refused(&error, new))?;
            self.revisions.replace(new.revision.clone());
            tracing::info!(
                allow = listing.allow.len(),
                block = listing.block.len(),
                "a controller has set the policy"
            );
        }
        Ok(self.listing(&listing))
    }

    fn listing(&self, listing: &Listing) -> Value {
        let Listing { allow, block } = listing;
        let mut result = json!({"allow": allow, "block": block, "ruleCount": allow.len() + block.len()});
        if let (Some(revision), Some(members)) = (self.revisions.current(), result.as_object_mut()) {
            members.insert("desiredRevision".to_owned(), revision.into());
        }
        result
    }
}

fn refused(error: &SetError, new: &NewPolicy) -> (Code, String) {
    match error {
        SetError::Entry { list, index, reason } => {
            let targets = if *list == "allow" { &new.allow } else { &new.block };
            let target = targets.get(*index).map(|target| shown(target)).unwrap_or_default();
            (Code::Params, format!("{list}[{index}] {target}: {reason}"))
        }
        SetError::Isolation => (
            Code::Isolation,
            "would turn the isolation of the VM from others on or off; --allow=0.0.0.0/0 decides that when Softnet starts"
                .to_owned(),
        ),
        SetError::Filter(reason) => (Code::Params, reason.clone()),
    }
}

fn failure(refusal: Refusal) -> Value {
    let Refusal { id: of, code, reason } = refusal;
    json!({"jsonrpc": "2.0", "id": id(of), "error": {"code": code as i32, "message": reason}})
}

fn id(id: Option<Id>) -> Value {
    match id {
        Some(Id::Text(text)) => text.into(),
        Some(Id::Number(number)) => number.into(),
        None => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    /// A VM whose policy is what was sent last, unless an entry is `wrong`.
    #[derive(Default)]
    struct Fake(Listing);

    impl Vm for Fake {
        type Policy = ();

        fn policy(&self) -> Listing {
            self.0.clone()
        }

        fn prepare(&self, new: &NewPolicy) -> Result<((), Listing), SetError> {
            match new.block.iter().position(|entry| entry == "wrong") {
                Some(index) => Err(SetError::Entry { list: "block", index, reason: "is wrong".to_owned() }),
                None => Ok(((), Listing { allow: new.allow.clone(), block: new.block.clone() })),
            }
        }

        fn apply(&mut self, (): (), listing: &Listing) -> Result<(), SetError> {
            self.0 = listing.clone();
            Ok(())
        }

        fn statistics(&self) -> Value {
            Value::Null
        }

        fn lease(&self) -> Value {
            Value::Null
        }
    }

    #[test]
    fn k3_a_wrong_entry_is_named_and_nothing_is_applied() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut connection = Connection::check(ours.into(), Methods::Policy).unwrap();
        let (mut control, mut vm) = (Control::default(), Fake::default());
        let mut answers = BufReader::new(theirs.try_clone().unwrap());
        let mut set = |block: &[&str]| {
            let params = json!({"allow": ["a"], "block": block});
            let request =
                json!({"jsonrpc": "2.0", "id": "1", "method": "softnet.policy.set", "params": params});
            theirs.write_all(format!("{request}\n").as_bytes()).unwrap();
            connection.note_readable();
            control.turn(&mut connection, &mut vm);
            let mut line = String::new();
            answers.read_line(&mut line).unwrap();
            (serde_json::from_str::<Value>(&line).unwrap(), vm.policy().block)
        };
        let (answer, block) = set(&["b"]);
        assert_eq!(answer["result"], json!({"allow": ["a"], "block": ["b"], "ruleCount": 2}));
        assert_eq!(block, ["b"]);
        let (answer, block) = set(&["c", "wrong"]);
        assert_eq!(answer["error"], json!({"code": -32602, "message": "block[1] \"wrong\": is wrong"}));
        assert_eq!((answer["id"].as_str(), block), (Some("1"), vec!["b".to_owned()]));
    }
}
