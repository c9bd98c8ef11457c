//! `softnet policy`: shows and replaces the policy of a running VM, over the VM's control socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::cli::{PolicyAction, PolicyArgs};
use crate::control::socket;
use crate::usage::UsageError;

/// How long the VM's Softnet may take to answer. It serves one controller at a time, and each for ten seconds at most while that one
/// says nothing.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of an answer.
const LONGEST: u64 = 1 << 21;

/// Carries out `softnet policy`.
///
/// # Errors
/// A [`UsageError`] if there is no such VM or an entry is wrong.
pub fn run(args: &PolicyArgs) -> anyhow::Result<()> {
    let (vm, request) = match &args.action {
        PolicyAction::Get(vm) => (vm, json!({"jsonrpc": "2.0", "id": 1, "method": "softnet.policy.get"})),
        PolicyAction::Set(set) => {
            let params = json!({"allow": set.allow, "block": set.block});
            (&set.vm, json!({"jsonrpc": "2.0", "id": 1, "method": "softnet.policy.set", "params": params}))
        }
    };
    let answer = ask(&vm.vm, &request)?;
    if let Some(error) = answer.get("error") {
        let reason = error["message"].as_str().unwrap_or("refused the request");
        return Err(UsageError::flag("the policy", reason).into());
    }
    let result = answer.get("result").context("the VM's Softnet sent no result")?;
    let mut output = std::io::stdout().lock();
    if vm.json {
        writeln!(output, "{result}")?;
        return Ok(());
    }
    for action in ["allow", "block"] {
        for entry in result[action].as_array().into_iter().flatten() {
            writeln!(output, "{action} {}", entry.as_str().unwrap_or_default())?;
        }
    }
    Ok(())
}

/// Sends one request to the VM with this name or MAC address, and returns the answer.
fn ask(vm: &str, request: &Value) -> anyhow::Result<Value> {
    let mut stream = socket::connect(vm).map_err(|error| {
        let reason = match error.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
                "is no running VM of this user; give the --name or the MAC address of one, and use sudo if root started it for somebody else".to_owned()
            }
            std::io::ErrorKind::PermissionDenied => "is a VM of another user; use sudo".to_owned(),
            _ => error.to_string(),
        };
        UsageError::new("--vm", vm, reason)
    })?;
    stream.set_read_timeout(Some(PATIENCE)).context("cannot set a time limit")?;
    stream.write_all(format!("{request}\n").as_bytes()).context("cannot ask the VM's Softnet")?;
    let mut line = String::new();
    BufReader::new(stream.take(LONGEST)).read_line(&mut line).context("the VM's Softnet does not answer")?;
    if line.is_empty() {
        bail!("the VM's Softnet has ended, or serves another controller");
    }
    serde_json::from_str(&line).context("cannot read the answer of the VM's Softnet")
}
