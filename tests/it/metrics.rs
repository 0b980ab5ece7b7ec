//! What is counted and timed, on the real server: every series, its form and what it says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::client::{Answer, connect, message, post_stream, send};
use crate::fake::{Fake, Script, wait_for};
use crate::generated::{check, table};
use crate::process::{Server, tessera};
use crate::root;

/// A family of the page.
#[derive(Debug, Default)]
pub struct Family {
    pub kind: String,
    pub help: String,
    /// Name, labels and value of each of its samples.
    pub samples: Vec<(String, BTreeMap<String, String>, f64)>,
}

/// Labels between braces, each quoted; quotes, backslashes and line feeds within are escaped.
fn labels(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (name, tail) = rest.split_once("=\"").unwrap_or_else(|| panic!("{text}"));
        let (mut value, mut chars) = (String::new(), tail.char_indices());
        let end = loop {
            match chars.next().unwrap_or_else(|| panic!("no quote ends {text}")) {
                (i, '"') => break i,
                (_, '\\') => match chars.next().unwrap().1 {
                    'n' => value.push('\n'),
                    c @ ('"' | '\\') => value.push(c),
                    c => panic!("\\{c} in {text}"),
                },
                (_, c) => value.push(c),
            }
        };
        assert!(found.insert(name.to_owned(), value).is_none(), "{name} twice in {text}");
        rest = &tail[end + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    found
}

/// The page's families by the names of `# TYPE`, after checking what either format demands.
pub fn families(page: &str, is_open: bool) -> BTreeMap<String, Family> {
    let mut all: BTreeMap<String, Family> = BTreeMap::new();
    let page = match is_open {
        true => page.strip_suffix("# EOF\n").expect("the end"),
        false => page,
    };
    assert!(page.ends_with('\n') && !page.contains("\n\n") && !page.contains("# EOF"));
    let (mut current, mut help) = (String::new(), None);
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = Some(rest.split_once(' ').unwrap());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            let (of, text) = help.take().unwrap();
            assert_eq!(of, name);
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(is_open || kind != "counter" || name.ends_with("_total"), "{line}");
            let family = Family { kind: kind.into(), help: text.into(), samples: Vec::new() };
            assert!(all.insert(name.to_owned(), family).is_none(), "{name} twice");
            current = name.to_owned();
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, rest) = series.split_once('{').unwrap();
            let family = all.get_mut(&current).unwrap();
            let ends: &[&str] = match family.kind.as_str() {
                "histogram" => &["_bucket", "_sum", "_count"],
                "counter" if is_open => &["_total"],
                _ => &[""],
            };
            let end = name.strip_prefix(&current).unwrap_or_else(|| panic!("{line} in {current}"));
            assert!(ends.contains(&end), "{line}");
            let sample = (name.to_owned(), labels(rest.strip_suffix('}').unwrap()), value);
            assert!(!family.samples.iter().any(|s| (&s.0, &s.1) == (&sample.0, &sample.1)));
            family.samples.push((sample.0, sample.1, sample.2.parse().unwrap()));
        }
    }
    all.values().filter(|family| family.kind == "histogram").for_each(check_histogram);
    all
}

fn check_histogram(family: &Family) {
    /// Bounds with their counts, and the count of all.
    type Group = (Vec<(f64, f64)>, Option<f64>);
    let mut groups: BTreeMap<BTreeMap<String, String>, Group> = BTreeMap::new();
    for (name, labels, value) in &family.samples {
        let mut rest = labels.clone();
        let bound = rest.remove("le").map(|le| le.parse::<f64>().unwrap());
        let group = groups.entry(rest).or_default();
        match bound {
            Some(bound) => group.0.push((bound, *value)),
            None if name.ends_with("_count") => group.1 = Some(*value),
            None => assert!(*value >= 0.0),
        }
    }
    for (buckets, count) in groups.values() {
        assert!(buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{family:?}");
        let last = buckets.last().unwrap();
        assert_eq!((last.0, Some(last.1)), (f64::INFINITY, *count), "{family:?}");
    }
}

fn get(address: SocketAddr, accept: &str) -> Answer {
    send(address, "GET", "/metrics", accept, b"")
}

/// Both forms of the page, which have the same families.
fn page(address: SocketAddr) -> BTreeMap<String, Family> {
    let text = get(address, "");
    assert_eq!(text.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let open = get(address, "accept: application/openmetrics-text;version=1.0.0\r\n");
    let open_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(open.header("content-type"), Some(open_type));
    let (text, open) = (families(text.text(), false), families(open.text(), true));
    let total = |(name, family): (&String, &Family)| match family.kind.as_str() {
        "counter" => format!("{name}_total"),
        _ => name.clone(),
    };
    assert_eq!(text.keys().cloned().collect::<Vec<_>>(), {
        let mut names: Vec<_> = open.iter().map(total).collect();
        names.sort();
        names
    });
    text
}

/// The sum of the samples that have these labels.
fn value(page: &BTreeMap<String, Family>, name: &str, labels: &[(&str, &str)]) -> f64 {
    let family = page.iter().find(|(family, _)| name.starts_with(family.as_str()));
    let exact = page.get(name).or(family.map(|(_, family)| family));
    let family = exact.unwrap_or_else(|| panic!("no {name} in {:?}", page.keys()));
    let has = |found: &BTreeMap<String, String>| {
        labels.iter().all(|(name, value)| found.get(*name).is_some_and(|found| found == value))
    };
    let samples = family.samples.iter().filter(|(sample, of, _)| sample == name && has(of));
    samples.map(|(_, _, value)| value).sum()
}

/// A demo with a key and one slot, and requests of every kind.
fn busy() -> Server {
    let args = ["serve", "--port", "0", "--api-key", "k", "--adapter-slots", "1"];
    let dir = tempfile::tempdir().unwrap();
    let demo = root().join("demo/adapters");
    let path = dir.path().join("late");
    fs::create_dir(&path).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(demo.join("poet").join(file), path.join(file)).unwrap();
    }
    let folder = dir.path().to_str().unwrap();
    let runtime = ["--allow-runtime-adapters", "--adapter-root", folder];
    let server = Server::start_command(tessera(&[&args[..], &runtime].concat()));
    let address = address(&server);
    let load = json!({"lora_name": "late", "lora_path": path});
    assert_eq!(ask(address, "/v1/load_lora_adapter", &load).status, 200);
    for model in ["demo", "pirate", "poet", "pirate", "pirate", "late"] {
        let body = json!({"model": model, "prompt": "The quick brown fox jumps over the lazy dog \
            and it was a fine day", "max_tokens": 5, "ignore_eos": true, "n": 2, "new_field": 1});
        assert_eq!(ask(address, "/v1/completions", &body).status, 200);
    }
    assert_eq!(ask(address, "/v1/completions", &json!({"model": "nobody"})).status, 404);
    assert_eq!(ask(address, "/nowhere", &json!({})).status, 404);
    server
}

fn address(server: &Server) -> SocketAddr {
    server.address.parse().unwrap()
}

fn ask(address: SocketAddr, path: &str, body: &Value) -> Answer {
    let key = "authorization: Bearer k\r\n";
    send(address, "POST", path, key, body.to_string().as_bytes())
}

#[test]
fn generated_table_of_metrics_has_every_series_with_its_type_labels_and_meaning() {
    let server = busy();
    let address = address(&server);
    let page = page(address);
    let plain = get(address, "");
    let order =
        plain.text().lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let mut rows: Vec<Vec<String>> = order
        .map(|name| {
            let Family { kind, help, samples } = &page[name];
            let names = samples.iter().flat_map(|(_, labels, _)| labels.keys());
            let names: BTreeSet<&String> = names.collect();
            let common = ["model_name", "engine", "le"];
            let own = names.into_iter().filter(|name| !common.contains(&name.as_str()));
            let own: Vec<String> = own.map(|name| format!("`{name}`")).collect();
            assert!(!samples.is_empty(), "{name} says nothing");
            let every = |name: &str| samples.iter().all(|(_, labels, _)| labels.contains_key(name));
            assert!(every("model_name") && every("engine"), "{name}");
            vec![format!("`{name}`"), kind.clone(), own.join(", "), help.clone()]
        })
        .collect();
    assert_eq!(rows.len(), page.len());
    // vLLM's first, as they follow each other on the page.
    rows.sort_by_key(|row| row[0].starts_with("`tessera:"));
    check("metrics.md", "metrics", &table(&["name", "type", "labels", "meaning"], rows));
}

#[test]
fn what_sequences_took_adds_up_as_vllms_does() {
    let server = busy();
    let page = page(address(&server));
    let count = |name: &str| value(&page, &format!("vllm:{name}_count"), &[]);
    let sum = |name: &str| value(&page, &format!("vllm:{name}_sum"), &[]);
    for name in [
        "time_to_first_token_seconds",
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
        "request_prefill_time_seconds",
        "request_decode_time_seconds",
        "request_inference_time_seconds",
        "request_time_per_output_token_seconds",
        "request_prompt_tokens",
        "request_generation_tokens",
        "request_params_max_tokens",
    ] {
        assert_eq!(count(name), 12.0, "{name}");
    }
    for name in ["request_params_n", "request_max_num_generation_tokens"] {
        assert_eq!(count(name), 6.0, "{name}");
    }
    assert_eq!((sum("request_params_n"), sum("request_max_num_generation_tokens")), (12.0, 30.0));
    assert_eq!((sum("request_generation_tokens"), sum("request_params_max_tokens")), (60.0, 60.0));
    assert_eq!(count("inter_token_latency_seconds"), 48.0);
    // Two clocks, rounded to nanoseconds.
    let near = |a: f64, b: f64| (a - b).abs() < 1e-6;
    let (prefill, decode) =
        (sum("request_prefill_time_seconds"), sum("request_decode_time_seconds"));
    assert!(near(sum("request_inference_time_seconds"), prefill + decode));
    assert!(near(sum("inter_token_latency_seconds"), decode));
    assert!(near(sum("request_time_per_output_token_seconds"), decode / 4.0));
    let inside = sum("request_queue_time_seconds") + sum("request_inference_time_seconds");
    assert!(inside > 0.0 && inside < sum("e2e_request_latency_seconds"), "{inside}");
    let ttft = sum("time_to_first_token_seconds");
    assert!(ttft > sum("request_queue_time_seconds") + prefill && ttft < inside + 1.0);
    let total = |name: &str| value(&page, &format!("vllm:{name}_total"), &[]);
    assert_eq!(sum("request_prompt_tokens"), total("prompt_tokens"));
    assert!(total("prompt_tokens_cached") > 0.0);
    let computed = total("prompt_tokens") - total("prompt_tokens_cached");
    assert_eq!(sum("iteration_tokens_total"), computed + total("generation_tokens"));
    assert_eq!(total("request_success"), 12.0);
    let of = [("finished_reason", "length")];
    assert_eq!(value(&page, "vllm:request_success_total", &of), 12.0);
}

#[test]
fn each_adapter_has_its_hits_misses_evictions_and_bytes() {
    let server = busy();
    let page = page(address(&server));
    let slots = |adapter: &str| {
        ["hits", "misses", "evictions"].map(|what| {
            let name = format!("tessera:adapter_slot_{what}_total");
            value(&page, &name, &[("adapter", adapter)])
        })
    };
    // Two samples a request; one slot. What two names share is there for the second one too.
    assert_eq!(slots("pirate"), [4.0, 2.0, 2.0]);
    assert_eq!(slots("poet"), [1.0, 1.0, 1.0]);
    assert_eq!(slots("late"), [1.0, 1.0, 0.0]);
    assert_eq!(slots("demo"), [0.0; 3]);
    let bytes = |adapter, tier| {
        let labels = [("adapter", adapter), ("tier", tier)];
        value(&page, "tessera:adapter_resident_bytes", &labels)
    };
    assert!(bytes("poet", "host") > 0.0);
    assert_eq!(bytes("poet", "host"), bytes("late", "device"));
    assert_eq!((bytes("poet", "device"), bytes("pirate", "device")), (0.0, 0.0));
    // Three that nobody has asked for.
    assert!(bytes("other", "host") > bytes("pirate", "host"));
    let loads = |adapter, tier| {
        let labels = [("adapter", adapter), ("tier", tier)];
        value(&page, "tessera:adapter_load_seconds_count", &labels)
    };
    assert_eq!((loads("late", "host"), loads("late", "device")), (1.0, 1.0));
    assert_eq!((loads("pirate", "host"), loads("pirate", "device")), (0.0, 2.0));
    let of = [("adapter", "pirate")];
    assert_eq!(value(&page, "tessera:adapter_time_to_first_token_seconds_count", &of), 6.0);
    let info = &page["vllm:lora_requests_info"].samples;
    assert_eq!((info.len(), info[0].1["max_lora"].as_str()), (1, "1"));
    assert!(info[0].2 > 1.7e9, "the time");
    let cache = &page["vllm:cache_config_info"].samples[0].1;
    assert!(cache["num_gpu_blocks"].parse::<u64>().unwrap() > 0);
    assert_eq!(cache["enable_prefix_caching"], "True");
}

#[test]
fn gateways_see_which_adapters_run_and_which_wait() {
    let server = Server::start(&["--adapter-slots", "1"]);
    let address = address(&server);
    let body = |model: &str| {
        json!({"model": model, "prompt": "a", "max_tokens": 400, "stream": true,
            "ignore_eos": true})
    };
    let info = || {
        let page = families(get(address, "").text(), false);
        let labels = page["vllm:lora_requests_info"].samples[0].1.clone();
        (labels["running_lora_adapters"].clone(), labels["waiting_lora_adapters"].clone())
    };
    assert_eq!(info(), (String::new(), String::new()));
    let mut first = post_stream(address, "/v1/completions", &body("pirate"));
    assert!(first.frame().is_some());
    let waiting = connect(
        address,
        &message("POST", "/v1/completions", "", body("poet").to_string().as_bytes()),
    );
    wait_for(|| info() == ("pirate".into(), "poet".into()), || format!("{:?}", info()));
    drop((first, waiting));
    wait_for(|| info() == (String::new(), String::new()), || format!("{:?}", info()));
}

#[test]
fn requests_are_counted_by_route_and_status_and_made_up_ones_together() {
    let fake = Fake::new(Script::Echo(1), |_| {});
    let body = json!({"prompt": "abc", "max_tokens": 1}).to_string();
    let ask = |method: &str, path: &str, body: &str| {
        send(fake.address, method, path, "", body.as_bytes())
    };
    let whole = ask("POST", "/v1/completions", &body);
    assert_eq!(whole.status, 200);
    assert_eq!(ask("POST", "/v1/completions/", "{").status, 400);
    for i in 0..20 {
        assert_eq!(ask("GET", &format!("/made/up/{i}"), "").status, 404);
        ask(&format!("MADEUP{i}"), "/v1/models", "");
    }
    assert_eq!(ask("HEAD", "/v1/models", "").status, 200);
    // An answer is over a moment after the client has it.
    let page = || page(fake.address);
    let open = |name: &str| value(&page(), &format!("tessera:http_{name}"), &[]);
    let still = || (open("connections"), open("requests_in_flight"));
    wait_for(|| still() == (1.0, 1.0), || format!("the page's own and {:?}", still()));
    let page = page();
    let count = |labels: &[(&str, &str)]| value(&page, "tessera:http_requests_total", labels);
    let route = ("route", "/v1/completions");
    assert_eq!(count(&[route, ("method", "POST"), ("status", "200")]), 1.0);
    assert_eq!(count(&[route, ("status", "400")]), 1.0);
    assert_eq!(count(&[("route", "none"), ("method", "GET"), ("status", "404")]), 20.0);
    assert_eq!(count(&[("route", "/v1/models"), ("method", "other"), ("status", "405")]), 20.0);
    assert_eq!(count(&[("method", "HEAD")]), 1.0);
    let series = page["tessera:http_requests_total"].samples.len();
    assert_eq!(series, 6, "that of the page among them");
    let errors = |code| value(&page, "tessera:http_errors_total", &[("code", code)]);
    assert_eq!((errors("route_not_found"), errors("method_not_allowed")), (20.0, 20.0));
    let bytes = |what: &str| value(&page, &format!("tessera:http_{what}_bytes_total"), &[route]);
    assert_eq!(bytes("request"), body.len() as f64 + 1.0);
    assert!(bytes("response") > whole.body.len() as f64);
}

#[test]
fn a_request_whose_client_leaves_is_counted_with_what_it_had() {
    let fake = Fake::new(Script::Hang(crate::fake::letters("abc")), |_| {});
    let body = json!({"prompt": "abc", "max_tokens": 9});
    let left =
        connect(fake.address, &message("POST", "/v1/completions", "", body.to_string().as_bytes()));
    fake.wait_seen(1);
    let told = |name: &str, labels: &[(&str, &str)]| {
        value(&families(get(fake.address, "").text(), false), name, labels)
    };
    let drawn = || told("tessera:adapter_generation_tokens_total", &[]);
    wait_for(|| drawn() == 3.0, || drawn().to_string());
    drop(left);
    fake.wait_cancelled(1);
    let count = || told("tessera:http_requests_total", &[("status", "499")]);
    wait_for(|| count() == 1.0, || count().to_string());
    let page = families(get(fake.address, "").text(), false);
    assert_eq!(value(&page, "vllm:request_generation_tokens_sum", &[]), 3.0);
    assert_eq!(value(&page, "vllm:request_params_n_count", &[]), 0.0, "it did not end by itself");
}

/// The names of series in a query, with what stands between their braces.
fn queried(query: &str) -> Vec<(String, String)> {
    let starts = ["vllm:", "tessera:"].map(|prefix| query.match_indices(prefix));
    let names = starts.into_iter().flatten().map(|(start, _)| {
        let rest = &query[start..];
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        let (name, rest) = rest.split_at(rest.find(|c| !is_name(c)).unwrap_or(rest.len()));
        let braces = rest.strip_prefix('{').map_or("", |rest| rest.split_once('}').unwrap().0);
        (name.to_owned(), braces.to_owned())
    });
    names.collect()
}

#[test]
fn dashboard_and_alerts_ask_for_nothing_that_is_not_there() {
    let read = |path: &str| fs::read_to_string(root().join("deploy").join(path)).unwrap();
    let dashboard: Value = serde_json::from_str(&read("grafana/tessera.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let mut queries: Vec<String> =
        targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect();
    let alerts = read("prometheus/alerts.yml");
    let exprs = alerts.lines().filter_map(|line| line.trim().strip_prefix("expr: "));
    queries.extend(exprs.map(str::to_owned));
    assert!(queries.len() > 40);
    let server = busy();
    let page = page(address(&server));
    let samples: BTreeMap<&str, &BTreeMap<String, String>> = page
        .values()
        .flat_map(|family| &family.samples)
        .map(|(name, labels, _)| (name.as_str(), labels))
        .collect();
    for query in &queries {
        let asked = queried(query);
        assert!(!asked.is_empty(), "{query}");
        let parentheses = |c| query.matches(c).count();
        assert_eq!(parentheses('('), parentheses(')'), "{query}");
        // What is summed by stands for all series of the query.
        let by = query.split("by (").skip(1).flat_map(|rest| rest.split(')').next());
        let by: Vec<&str> = by.flat_map(|list| list.split(", ")).collect();
        for (name, braces) in asked {
            let labels = samples.get(name.as_str()).unwrap_or_else(|| panic!("{name}: {query}"));
            let matched = braces.split(',').filter_map(|matcher| matcher.split('=').next());
            // Prometheus itself adds `instance`.
            let wanted =
                matched.chain(by.iter().copied()).filter(|l| !["", "instance"].contains(l));
            for label in wanted {
                assert!(labels.contains_key(label), "{name} has no {label}: {query}");
            }
        }
    }
}
