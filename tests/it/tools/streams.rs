//! Calls in streams, byte for byte.

use serde_json::json;

use super::{Server, TAGGED, body, weather};
use crate::http_streams::{DONE, ROLE, chat, delta, frames};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "Hm\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>";

/// The same of one delta.
fn chunk(content: &str, finish: &str) -> String {
    chat(&delta(0, content, finish))
}

#[test]
fn a_call_of_a_tool() {
    let server = Server::new(TAGGED, TEXT, true);
    let got = frames(&server.fake, CHAT, &body(json!({"stream": true, "tools": weather()})));
    let begin = "{\"tool_calls\":[{\"index\":0,\"id\":\"call_ID\",\"type\":\"function\",\
        \"function\":{\"name\":\"f\",\"arguments\":\"\"}}]}";
    let piece = |text: &str| {
        let text = json!(text);
        let call = format!("{{\"index\":0,\"function\":{{\"arguments\":{text}}}}}");
        chunk(&format!("{{\"tool_calls\":[{call}]}}"), "null")
    };
    let mut expected = vec![
        chunk(ROLE, "null"),
        chunk("{\"content\":\"H\"}", "null"),
        chunk("{\"content\":\"m\"}", "null"),
        chunk(begin, "null"),
    ];
    expected.extend(["{", "\"", "a", "\"", ":", " ", "1", "}"].map(piece));
    expected.push(chunk("{}", "\"tool_calls\",\"stop_reason\":null"));
    expected.push(DONE.to_owned());
    assert_eq!(got, expected);
}

#[test]
fn a_call_in_the_older_form() {
    let server = Server::new(TAGGED, TEXT, false);
    let function = weather()[0]["function"].clone();
    let got = frames(&server.fake, CHAT, &body(json!({"stream": true, "functions": [function]})));
    let joined: String = got.concat();
    let begin = "{\"function_call\":{\"name\":\"f\",\"arguments\":\"\"}}";
    assert!(got.contains(&chunk(begin, "null")), "{joined}");
    let end = "\"function_call\",\"stop_reason\":null";
    assert_eq!(got[got.len() - 2..], [chunk("{}", end), DONE.to_owned()]);
}
