//! What an answer of the generation routes holds.

use serde_json::{Value, json};

use crate::client::post;
use crate::fake::{Fake, Script};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

fn ok(fake: &Fake, path: &str, body: &Value) -> Value {
    let answer = post(fake.address, path, body);
    assert_eq!(answer.status, 200, "{body}: {}", answer.text());
    answer.json()
}

#[test]
fn more_tokens_than_the_context_has_left_are_cut_to_what_is_left() {
    let fake = Fake::new(Script::Echo(1), |_| {});
    for (asked, granted) in [(12, 12), (13, 12), (512, 12)] {
        ok(&fake, COMPLETIONS, &json!({"prompt": vec![5; 500], "max_tokens": asked}));
        assert_eq!(fake.seen.lock().unwrap().pop().unwrap().0.terms().tokens_max, granted);
    }
    // Sixteen is what a request gets that does not say.
    ok(&fake, COMPLETIONS, &json!({"prompt": vec![5; 511]}));
    assert_eq!(fake.seen.lock().unwrap().pop().unwrap().0.terms().tokens_max, 1);
    let message = json!([{"role": "user", "content": "x"}]);
    let cases = [
        (COMPLETIONS, "max_tokens", json!({"prompt": "x"})),
        (CHAT, "max_tokens", json!({"messages": message})),
        (CHAT, "max_completion_tokens", json!({"messages": message})),
    ];
    for (path, field, mut body) in cases {
        body[field] = 512.into();
        ok(&fake, path, &body);
        body[field] = 513.into();
        let answer = post(fake.address, path, &body);
        let expected = (Some(field.to_owned()), "invalid_value".to_owned());
        assert_eq!((answer.status, answer.error()), (400, expected));
        let text = format!("{field} must be at most 512, this model's context length, got 513");
        assert_eq!(answer.message(), text);
    }
}
