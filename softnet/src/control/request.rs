//! A request of a controller: one line of JSON-RPC 2.0 (<https://www.jsonrpc.org/specification>).
//!
//! Memory is bounded by the line: members are borrowed from it, nothing is parsed twice into values, and the parser
//! of `serde_json` limits how deep they nest.

use std::fmt;

use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// How many targets a policy may have, of both lists together, counted as sent.
pub const MOST_TARGETS: usize = 4096;

/// Bytes of the longest text for `id` and `desiredRevision`.
const LONGEST_TEXT: usize = 256;

/// What the controller wants.
#[derive(Debug, Eq, PartialEq)]
pub struct Request {
    /// Goes into the answer as it came.
    pub id: Id,
    /// What to do.
    pub method: Method,
}

/// The identifier of a request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Id {
    /// A text of at most 256 bytes.
    Text(String),
    /// A non-negative integer.
    Number(u64),
}

/// A method and its parameters.
#[derive(Debug, Eq, PartialEq)]
pub enum Method {
    /// `softnet.policy.get`
    GetPolicy,
    /// `softnet.policy.set`
    SetPolicy(NewPolicy),
    /// `softnet.stats.get`
    GetStatistics,
    /// `softnet.lease.get`
    GetLease,
}

/// The parameters of `softnet.policy.set`: the whole policy, as text.
#[derive(Debug, Default, Eq, PartialEq)]
pub struct NewPolicy {
    /// What the VM may reach.
    pub allow: Vec<String>,
    /// What it may not.
    pub block: Vec<String>,
    /// The controller's name for this policy, of 1 to 256 bytes.
    pub revision: Option<String>,
}

/// Why a line is refused.
#[derive(Debug, Eq, PartialEq)]
pub struct Refusal {
    /// The request's, if it could be read.
    pub id: Option<Id>,
    /// JSON-RPC's number for the kind of mistake.
    pub code: Code,
    /// What is wrong, for people.
    pub reason: String,
}

/// The numbers of errors: JSON-RPC 2.0, section 5.1, and -32000 to -32099 as this program defines them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(i32)]
pub enum Code {
    /// No JSON, or a line that is too long.
    Parse = -32700,
    /// JSON, but no request.
    Request = -32600,
    /// No such method.
    Method = -32601,
    /// Parameters that the method does not take.
    Params = -32602,
    /// The revision names another policy, or one that was replaced.
    Revision = -32001,
    /// The policy would turn the isolation of the bridge's ports on or off.
    Isolation = -32002,
}

/// Which methods a connection has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Methods {
    /// Those of `--control-fd`.
    Policy,
    /// Those, and what a VM's socket has beyond.
    All,
}

/// Parses one line.
///
/// # Errors
/// The answer to a line that is no request.
pub fn parse(line: &[u8], methods: Methods) -> Result<Request, Refusal> {
    let no_json = |error: &dyn fmt::Display| Refusal {
        id: None,
        code: Code::Parse,
        reason: format!("is no JSON: {error}"),
    };
    // Syntax first and whole, so that what is not JSON is never taken for a wrong request.
    let line = std::str::from_utf8(line).map_err(|error| no_json(&error))?;
    serde_json::from_str::<IgnoredAny>(line).map_err(|error| no_json(&error))?;
    let refuse =
        |id: Option<&Id>, code, reason: &str| Refusal { id: id.cloned(), code, reason: reason.to_owned() };
    let members: Members<'_> = serde_json::from_str(line)
        .map_err(|_| refuse(None, Code::Request, "is no object; send one request a line"))?;
    let id = members.id.filter(|_| !members.repeated_id);
    let id = id.and_then(|raw| serde_json::from_str::<Id>(raw.get()).ok());
    let wrong = |code, reason: &str| refuse(id.as_ref(), code, reason);
    if members.repeated || members.repeated_id {
        return Err(wrong(Code::Request, "has a member twice"));
    }
    if members.unknown {
        return Err(wrong(Code::Request, "has members other than jsonrpc, id, method and params"));
    }
    let text = |raw: Option<&RawValue>| raw.and_then(|raw| serde_json::from_str::<String>(raw.get()).ok());
    if text(members.jsonrpc).as_deref() != Some("2.0") {
        return Err(wrong(Code::Request, "has no member \"jsonrpc\" that is \"2.0\""));
    }
    if id.is_none() {
        let reason =
            "has no id; it is a text of at most 256 bytes or a number from 0 to 18446744073709551615";
        return Err(wrong(Code::Request, reason));
    }
    let Some(name) = text(members.method) else {
        return Err(wrong(Code::Request, "has no member \"method\" that is a text"));
    };
    let params = members.params.map(RawValue::get).filter(|params| *params != "null");
    if params.is_some_and(|params| !params.starts_with(['{', '['])) {
        return Err(wrong(Code::Request, "has params that are neither an object nor an array"));
    }
    let none = |method| match params {
        None => Ok(method),
        Some(params) if is_empty(params) => Ok(method),
        Some(_) => Err(wrong(Code::Params, "takes no params")),
    };
    let method = match name.as_str() {
        "softnet.policy.get" => none(Method::GetPolicy)?,
        "softnet.policy.set" => {
            let params: PolicyParams = serde_json::from_str(params.unwrap_or("{}"))
                .map_err(|error| wrong(Code::Params, &without_position(&error)))?;
            if params.repeated {
                return Err(wrong(Code::Request, "has a member of params twice"));
            }
            Method::SetPolicy(params.policy().map_err(|reason| wrong(Code::Params, &reason))?)
        }
        "softnet.stats.get" if methods == Methods::All => none(Method::GetStatistics)?,
        "softnet.lease.get" if methods == Methods::All => none(Method::GetLease)?,
        _ => return Err(wrong(Code::Method, &format!("names no method of this channel: {}", shown(&name)))),
    };
    // Checked above; this only takes it out.
    let Some(id) = id else { return Err(refuse(None, Code::Request, "has no id")) };
    Ok(Request { id, method })
}

/// A text of the controller's, for a message: quoted, and cut where it is long.
pub fn shown(text: &str) -> String {
    const MOST: usize = 100;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{:?}…", text.get(..end).unwrap_or_default()),
        None => format!("{text:?}"),
    }
}

fn is_empty(params: &str) -> bool {
    params.get(1..params.len().saturating_sub(1)).is_some_and(|inner| inner.trim().is_empty())
}

/// The message of an error without the line and column, which are those of a part.
fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or_default().to_owned()
}

/// The members of a request, not looked at yet.
#[derive(Default)]
struct Members<'a> {
    jsonrpc: Option<&'a RawValue>,
    id: Option<&'a RawValue>,
    method: Option<&'a RawValue>,
    params: Option<&'a RawValue>,
    repeated: bool,
    repeated_id: bool,
    unknown: bool,
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfMembers;
        impl<'de> Visitor<'de> for OfMembers {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Members::default();
                while let Some(name) = map.next_key::<String>()? {
                    let value: &RawValue = map.next_value()?;
                    let member = match name.as_str() {
                        "jsonrpc" => &mut members.jsonrpc,
                        "id" => &mut members.id,
                        "method" => &mut members.method,
                        "params" => &mut members.params,
                        _ => {
                            members.unknown = true;
                            continue;
                        }
                    };
                    let repeated = member.replace(value).is_some();
                    members.repeated |= repeated;
                    members.repeated_id |= repeated && name == "id";
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(OfMembers)
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfId;
        impl Visitor<'_> for OfId {
            type Value = Id;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a text of at most {LONGEST_TEXT} bytes or a number that is not negative")
            }

            fn visit_u64<E>(self, number: u64) -> Result<Id, E> {
                Ok(Id::Number(number))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Id, E> {
                if text.len() > LONGEST_TEXT {
                    return Err(E::invalid_length(text.len(), &self));
                }
                Ok(Id::Text(text.to_owned()))
            }
        }
        deserializer.deserialize_any(OfId)
    }
}

/// The parameters of `softnet.policy.set` as they came.
#[derive(Default)]
struct PolicyParams {
    allow: Option<Targets>,
    block: Option<Targets>,
    revision: Option<String>,
    repeated: bool,
}

impl PolicyParams {
    fn policy(self) -> Result<NewPolicy, String> {
        let required = |targets: Option<Targets>, name| {
            targets
                .map(|targets| targets.0)
                .ok_or_else(|| format!("params has no list {name:?}; send an empty one for nothing"))
        };
        let (allow, block) = (required(self.allow, "allow")?, required(self.block, "block")?);
        if allow.len() + block.len() > MOST_TARGETS {
            return Err(too_many());
        }
        let fits = |revision: &String| (1..=LONGEST_TEXT).contains(&revision.len());
        if self.revision.as_ref().is_some_and(|revision| !fits(revision)) {
            return Err(format!("desiredRevision is not 1 to {LONGEST_TEXT} bytes long"));
        }
        Ok(NewPolicy { allow, block, revision: self.revision })
    }
}

fn too_many() -> String {
    format!("there are more than {MOST_TARGETS} targets in allow and block together")
}

impl<'de> Deserialize<'de> for PolicyParams {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfParams;
        impl<'de> Visitor<'de> for OfParams {
            type Value = PolicyParams;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("params by name, an object with the lists \"allow\" and \"block\"")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<PolicyParams, A::Error> {
                let mut params = PolicyParams::default();
                let mut seen_revision = false;
                while let Some(name) = map.next_key::<String>()? {
                    let repeated = match name.as_str() {
                        "allow" => params.allow.replace(map.next_value()?).is_some(),
                        "block" => params.block.replace(map.next_value()?).is_some(),
                        "desiredRevision" => {
                            params.revision = map.next_value()?;
                            std::mem::replace(&mut seen_revision, true)
                        }
                        other => {
                            let reason = format_args!("params has no member {}", shown(other));
                            return Err(serde::de::Error::custom(reason));
                        }
                    };
                    params.repeated |= repeated;
                }
                Ok(params)
            }
        }
        deserializer.deserialize_map(OfParams)
    }
}

/// A list of targets, of bounded length.
struct Targets(Vec<String>);

impl<'de> Deserialize<'de> for Targets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfTargets;
        impl<'de> Visitor<'de> for OfTargets {
            type Value = Targets;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of texts")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Targets, A::Error> {
                let mut targets = Vec::new();
                while let Some(target) = list.next_element()? {
                    if targets.len() == MOST_TARGETS {
                        return Err(serde::de::Error::custom(too_many()));
                    }
                    targets.push(target);
                }
                Ok(Targets(targets))
            }
        }
        deserializer.deserialize_seq(OfTargets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(line: &str) -> (i32, Option<Id>) {
        let refusal = parse(line.as_bytes(), Methods::Policy).unwrap_err();
        (refusal.code as i32, refusal.id)
    }

    fn method(line: &str) -> Method {
        parse(line.as_bytes(), Methods::Policy).unwrap_or_else(|refusal| panic!("{line}: {refusal:?}")).method
    }

    fn get(rest: &str) -> String {
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"softnet.policy.get"{rest}}}"#)
    }

    fn set(params: &str) -> String {
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"softnet.policy.set","params":{params}}}"#)
    }

    #[test]
    fn a_policy_is_read_and_replaced() {
        for params in ["", r#","params":null"#, r#","params":{}"#, r#","params":[ ]"#] {
            assert_eq!(method(&get(params)), Method::GetPolicy, "{params}");
        }
        let expected = NewPolicy { allow: vec!["10.0.0.0/8".into()], block: vec![], revision: None };
        assert_eq!(method(&set(r#"{"allow":["10.0.0.0/8"],"block":[]}"#)), Method::SetPolicy(expected));
        for (revision, read) in [("null", None), (r#""r1""#, Some("r1".to_owned()))] {
            let line = set(&format!(r#"{{"block":[],"allow":[],"desiredRevision":{revision}}}"#));
            assert_eq!(
                method(&line),
                Method::SetPolicy(NewPolicy { revision: read, ..NewPolicy::default() })
            );
        }
    }

    #[test]
    fn ids_are_texts_and_numbers() {
        let long = "i".repeat(256);
        for (id, read) in [
            ("0", Id::Number(0)),
            ("18446744073709551615", Id::Number(u64::MAX)),
            (r#""""#, Id::Text(String::new())),
            (r#""\u0061""#, Id::Text("a".into())),
            (&format!("{long:?}"), Id::Text(long.clone())),
        ] {
            let line = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"softnet.policy.get"}}"#);
            assert_eq!(parse(line.as_bytes(), Methods::Policy).unwrap().id, read);
        }
        let too_long = format!("{:?}", "i".repeat(257));
        for id in ["-1", "1.0", "1.5", "18446744073709551616", "null", "true", "[]", "{}", &too_long] {
            let line = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"softnet.policy.get"}}"#);
            assert_eq!(code(&line), (-32600, None), "{id}");
        }
    }

    #[test]
    fn what_is_no_json_is_a_parse_error() {
        for line in ["", " ", "{", "softnet", "{}{}", "[1,]", "{\"a\":1}x", "\u{feff}{}", &"[".repeat(1000)] {
            assert_eq!(code(line), (-32700, None), "{line}");
        }
        assert_eq!(parse(b"\"\xff\"", Methods::Policy).unwrap_err().code, Code::Parse);
    }

    #[test]
    fn k1_what_is_no_request_is_an_invalid_request() {
        for line in ["1", "null", "[]", "\"a\"", "[{}]", "{}"] {
            assert_eq!(code(line), (-32600, None), "{line}");
        }
        for line in [
            r#"{"id":1,"method":"softnet.policy.get"}"#,
            r#"{"jsonrpc":"1.0","id":1,"method":"softnet.policy.get"}"#,
            r#"{"jsonrpc":2.0,"id":1,"method":"softnet.policy.get"}"#,
            r#"{"jsonrpc":"2.0","id":1}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":1}"#,
            &get(r#","more":1"#),
            &get(r#","params":1"#),
        ] {
            assert_eq!(code(line), (-32600, Some(Id::Number(1))), "{line}");
        }
        let twice = get(r#","id":1"#);
        assert_eq!(code(&twice), (-32600, None));
        let method = get(r#","method":"softnet.policy.get""#);
        assert_eq!(code(&method), (-32600, Some(Id::Number(1))));
        assert_eq!(code(&set(r#"{"allow":[],"allow":[],"block":[]}"#)).0, -32600);
        // A notification is answered too.
        assert_eq!(code(r#"{"jsonrpc":"2.0","method":"softnet.policy.get"}"#), (-32600, None));
    }

    #[test]
    fn methods_and_params_have_codes_of_their_own() {
        for name in ["softnet.policy.put", "", "softnet.stats.get", "softnet.lease.get"] {
            let line = format!(r#"{{"jsonrpc":"2.0","id":1,"method":{name:?}}}"#);
            assert_eq!(code(&line), (-32601, Some(Id::Number(1))), "{name}");
        }
        let stats = br#"{"jsonrpc":"2.0","id":1,"method":"softnet.stats.get"}"#;
        assert_eq!(parse(stats, Methods::All).unwrap().method, Method::GetStatistics);
        for params in [
            "null",
            "{}",
            r#"{"allow":[]}"#,
            r#"{"block":[]}"#,
            r#"[[],[]]"#,
            r#"{"allow":[],"block":[],"more":1}"#,
            r#"{"allow":"10.0.0.0/8","block":[]}"#,
            r#"{"allow":[1],"block":[]}"#,
            r#"{"allow":null,"block":[]}"#,
            r#"{"allow":[],"block":[],"desiredRevision":""}"#,
            r#"{"allow":[],"block":[],"desiredRevision":1}"#,
        ] {
            assert_eq!(code(&set(params)), (-32602, Some(Id::Number(1))), "{params}");
        }
        assert_eq!(code(&get(r#","params":{"allow":[]}"#)).0, -32602);
    }

    #[test]
    fn the_targets_are_counted_together() {
        let list = |count: usize| format!("[{}]", vec![r#""@host""#; count].join(","));
        let both = |allow, block| set(&format!(r#"{{"allow":{},"block":{}}}"#, list(allow), list(block)));
        method(&both(4096, 0));
        method(&both(2048, 2048));
        for (allow, block) in [(4097, 0), (2048, 2049), (0, 5000)] {
            assert_eq!(code(&both(allow, block)).0, -32602, "{allow} {block}");
        }
    }
}
