//! What a Hub says that is not so, or that changes while files are fetched.

use tessera::cli::hub::{Kind, resolve};

use crate::hub::{MODEL_FILES, World, same_files};
use crate::hub_server::{COMMIT, Lies};

/// What a fetch says to this, after which an honest Hub is believed.
fn told(lies: Lies) -> String {
    let world = World::new();
    world.server.change(|plan| plan.lies = lies);
    let error = world.refused("org/model", Kind::Model);
    assert!(resolve("org/model", Kind::Model, &world.offline()).is_err(), "nothing is kept");
    world.server.change(|plan| plan.lies = Lies::default());
    let dir = resolve("org/model", Kind::Model, &world.settings()).unwrap();
    same_files(&world.source.path().join("model"), &dir, &MODEL_FILES);
    error
}

#[test]
fn a_content_of_another_commit_or_name_than_was_told_is_not_taken() {
    let error = told(Lies { content_commit: Some("f".repeat(40)), ..Lies::default() });
    assert!(error.contains("it answers for another commit"), "{error}");
    let error = told(Lies { content_etag: Some("\"new\"".into()), ..Lies::default() });
    assert!(error.contains("has changed meanwhile"), "{error}");
    // Small files have names that say nothing about their bytes.
    let small = Lies {
        etag: Some("plain".into()),
        content_etag: Some("\"other\"".into()),
        ..Lies::default()
    };
    assert!(told(small).contains("has changed meanwhile"));
}

#[test]
fn a_small_file_has_the_hash_that_the_list_says() {
    let lies = |oid: &str| Lies {
        etag: Some("plain".into()),
        oid: Some(("config.json".into(), oid.into())),
        ..Lies::default()
    };
    let error = told(lies(&"ab".repeat(20)));
    assert!(error.contains("config.json") && error.contains("has not the hash"), "{error}");
    let world = World::new();
    let config = std::fs::read(world.source.path().join("model/config.json")).unwrap();
    let blob = [format!("blob {}\0", config.len()).as_bytes(), &config].concat();
    let hash = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, &blob);
    let hash: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    world.server.change(|plan| plan.lies.oid = Some(("config.json".into(), hash)));
    resolve("org/model", Kind::Model, &world.settings()).unwrap();
}

#[test]
fn sizes_that_cannot_be_are_told_before_anything_is_fetched() {
    let of =
        |bytes: u64| Lies { size: Some(("model.safetensors".into(), bytes)), ..Lies::default() };
    for bytes in [u64::MAX, 1 << 60] {
        let error = told(of(bytes));
        assert!(error.contains(&format!("model.safetensors has {bytes} bytes")), "{error}");
    }
    let error = told(of(1 << 49));
    assert!(error.contains("are free"), "{error}");
    for bytes in [0, 1, 1 << 20] {
        assert!(told(of(bytes)).contains("came"), "{bytes}");
    }
}

#[test]
fn a_list_without_end_and_a_content_without_end_are_given_up() {
    let error = told(Lies { entries: 200_000, ..Lies::default() });
    assert!(error.contains("more than 100000 entries"), "{error}");
    let error = told(Lies { tail: Some(1 << 24), ..Lies::default() });
    assert!(error.contains("more than") && error.contains("bytes came"), "{error}");
}

#[test]
fn all_of_a_file_in_answer_to_a_part_begins_it_anew() {
    let world = World::new();
    world.server.change(|plan| {
        plan.cut = Some(("model.safetensors".into(), 2));
        plan.lies.whole = true;
    });
    let dir = resolve("org/model", Kind::Model, &world.settings()).unwrap();
    same_files(&world.source.path().join("model"), &dir, &MODEL_FILES);
    assert!(world.server.seen().iter().any(|seen| seen.from > 0), "a part was asked for");
    assert!(dir.ends_with(COMMIT));
}
