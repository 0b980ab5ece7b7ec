//! The document as a page for people: plain HTML, its style in it, no scripts.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;\
padding:0 1rem;color:#222;background:#fff}h2{margin-top:2.5rem;border-top:1px solid #ccc;\
padding-top:1rem}code,pre{font:13px/1.45 ui-monospace,monospace;background:#f4f4f4}pre{padding:\
.6rem;overflow:auto}table{border-collapse:collapse;width:100%}td,th{border:1px solid #ddd;\
padding:.25rem .5rem;text-align:left;vertical-align:top}@media(prefers-color-scheme:dark){body{\
color:#ddd;background:#181818}code,pre{background:#262626}td,th{border-color:#444}a{color:#8bf}}";

/// Nothing but this style, from nowhere else.
pub(super) fn policy() -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, STYLE.as_bytes());
    let hash = STANDARD.encode(hash);
    format!(
        "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    )
}

/// The page of a document that [`super::describe`] made.
pub(super) fn page(document: &Value) -> String {
    let mut html = String::new();
    let _ = write_page(&mut html, document);
    html
}

fn write_page(html: &mut String, document: &Value) -> std::fmt::Result {
    let info = &document["info"];
    let title = format!("{} {}", word(&info["title"]), word(&info["version"]));
    write!(
        html,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>{title}</title><style>{STYLE}</style></head><body>\
         <h1>{title}</h1><p>{}</p><p>The same for programs: <a href=\"/openapi.json\">openapi.json\
         </a>.</p><ul>",
        escaped(word(&info["description"]))
    )?;
    let operations = || {
        object(&document["paths"]).flat_map(|(path, item)| {
            let told = |(method, _): &(&String, &Value)| {
                !["head", "options", "parameters"].contains(&method.as_str())
            };
            object(item).filter(told).map(move |(method, operation)| (path, method, operation))
        })
    };
    for (path, method, operation) in operations() {
        let id = escaped(word(&operation["operationId"]));
        write!(
            html,
            "<li><a href=\"#{id}\"><code>{} {}</code></a> ",
            upper(method),
            escaped(path)
        )?;
        write!(html, "{}</li>", escaped(word(&operation["summary"])))?;
    }
    html.push_str("</ul>");
    for (path, method, operation) in operations() {
        write_operation(html, document, path, method, operation)?;
    }
    html.push_str("<h2>Schemas</h2>");
    for (name, schema) in object(&document["components"]["schemas"]) {
        let name = escaped(name);
        let json = serde_json::to_string_pretty(schema).unwrap_or_default();
        write!(html, "<details id=\"schema-{name}\"><summary><code>{name}</code></summary>")?;
        write!(html, "<pre>{}</pre></details>", escaped(&json))?;
    }
    html.push_str("</body></html>\n");
    Ok(())
}

fn write_operation(
    html: &mut String,
    document: &Value,
    path: &str,
    method: &str,
    operation: &Value,
) -> std::fmt::Result {
    let id = escaped(word(&operation["operationId"]));
    let (method, path) = (upper(method), escaped(path));
    write!(html, "<h2 id=\"{id}\"><code>{method} {path}</code></h2>")?;
    let summary = escaped(word(&operation["summary"]));
    write!(html, "<p>{summary}. Who may ask: {}.</p>", escaped(word(&operation["x-access"])))?;
    let body = &operation["requestBody"]["content"]["application/json"]["schema"];
    if let Some(name) = target(body) {
        write_fields(html, &document["components"]["schemas"][name])?;
    }
    html.push_str("<table><tr><th>status</th><th>answer</th></tr>");
    for (status, response) in object(&operation["responses"]) {
        let response = match response["$ref"].as_str().and_then(|at| at.rsplit('/').next()) {
            Some(name) => &document["components"]["responses"][name],
            None => response,
        };
        write!(html, "<tr><td>{status}</td><td>{}", escaped(word(&response["description"])))?;
        for (kind, content) in object(&response["content"]) {
            write!(html, "<br><code>{}</code> ", escaped(kind))?;
            let of_event = content.pointer("/schema/anyOf/0/properties/data/contentSchema");
            html.push_str(&shape(of_event.unwrap_or(&content["schema"])));
        }
        html.push_str("</td></tr>");
    }
    html.push_str("</table>");
    Ok(())
}

fn write_fields(html: &mut String, schema: &Value) -> std::fmt::Result {
    html.push_str("<table><tr><th>field</th><th>value</th><th></th></tr>");
    let required = schema["required"].as_array();
    let is_required = |name: &str| required.is_some_and(|all| all.iter().any(|one| one == name));
    for (name, field) in object(&schema["properties"]) {
        let must = if is_required(name) { "<br>required" } else { "" };
        write!(html, "<tr><td><code>{}</code>{must}</td><td>", escaped(name))?;
        write!(
            html,
            "{}</td><td>{}</td></tr>",
            shape(field),
            escaped(word(&field["description"]))
        )?;
    }
    html.push_str("</table>");
    Ok(())
}

/// A schema in a few words of HTML.
fn shape(schema: &Value) -> String {
    if let Some(name) = target(schema) {
        let name = escaped(name);
        return format!("<a href=\"#schema-{name}\">{name}</a>");
    }
    if let Some(forms) = schema["anyOf"].as_array() {
        let forms = forms.iter().filter(|form| form["type"] != "null").map(shape);
        return forms.collect::<Vec<_>>().join(" or ");
    }
    if let Some(words) = schema["enum"].as_array() {
        let words = words.iter().filter(|word| !word.is_null());
        let words = words.map(|word| format!("<code>{}</code>", escaped(&word.to_string())));
        return words.collect::<Vec<_>>().join(", ");
    }
    let kinds = match &schema["type"] {
        Value::Array(all) => all.iter().map(word).filter(|kind| *kind != "null").collect(),
        Value::String(one) => vec![one.as_str()],
        _ => vec!["any"],
    };
    let mut text = escaped(&kinds.join(" or "));
    if schema.get("items").is_some() {
        text = format!("{text} of {}", shape(&schema["items"]));
    }
    let bounds = ["minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems"];
    for bound in bounds.into_iter().filter(|bound| schema.get(bound).is_some()) {
        text.push_str(&format!(", {bound} {}", escaped(&schema[bound].to_string())));
    }
    text
}

fn target(schema: &Value) -> Option<&str> {
    schema["$ref"].as_str()?.rsplit('/').next()
}

fn object(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn upper(method: &str) -> String {
    escaped(&method.to_ascii_uppercase())
}

fn escaped(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            c => html.push(c),
        }
    }
    html
}
