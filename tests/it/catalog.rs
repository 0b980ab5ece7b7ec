//! Names and contents of adapters: each content is kept once, and never more of them than fit.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use tessera::adapter::{Adapter, Catalog, LoadError, NameError, NewName, Report, Source};
use tessera::delta::{DeltaBuilder, LowRank, Side};
use tessera::dtype::Dtype;
use tessera::ids::{Digest, SiteId};

const WIDTH: usize = 64;
const RANK: usize = 4;
/// Of one of A and B in f32, and of the offsets of their rows.
const FACTOR_BYTES: u64 = (WIDTH * RANK * 4) as u64;

/// An adapter with an A of the numbers `a` and a B of the numbers `b`.
fn adapter(digest: u8, a: f32, b: f32) -> Adapter {
    let mut builder = DeltaBuilder::default();
    let mut factor = |side, x: f32| builder.push_dense(side, &[x; WIDTH * RANK], RANK).unwrap();
    let (down, up) = (factor(Side::Down, a), factor(Side::Up, b));
    let low_rank = LowRank { rank: RANK, down, middle: None, up, end: None };
    builder.site(SiteId(0)).low_rank = Some(low_rank);
    Adapter {
        digest: Digest([digest; 32]),
        delta: Arc::new(builder.finish(Dtype::F32)),
        method: "LORA",
        report: Report::default(),
    }
}

/// Bytes of one such adapter when it is held alone.
fn alone() -> u64 {
    let catalog = Catalog::new(u64::MAX);
    load(&catalog, "one", adapter(1, 1.0, 2.0)).unwrap();
    catalog.bytes()
}

fn load(catalog: &Catalog, name: &str, adapter: Adapter) -> Result<Option<Digest>, LoadError> {
    let new = NewName { name, source: Source::BuiltIn, text: None, created: 0, replace: true };
    catalog.load(new, adapter.digest, || Ok(adapter)).map(|loaded| loaded.freed)
}

#[test]
fn a_content_of_two_names_is_kept_once_and_goes_with_the_last() {
    let catalog = Catalog::new(alone());
    load(&catalog, "a", adapter(1, 1.0, 2.0)).unwrap();
    let new =
        NewName { name: "b", source: Source::BuiltIn, text: None, created: 0, replace: false };
    catalog.load(new, Digest([1; 32]), || panic!("it is there already")).unwrap();
    assert_eq!(catalog.bytes(), alone());
    let [a, b] = ["a", "b"].map(|name| catalog.get(name).unwrap().adapter);
    assert!(Arc::ptr_eq(&a, &b));
    assert_eq!(catalog.remove("a"), Some(None), "b points at it still");
    assert_eq!(catalog.remove("b"), Some(Some(Digest([1; 32]))));
    assert_eq!((catalog.remove("b"), catalog.bytes(), catalog.list().len()), (None, 0, 0));
}

#[test]
fn a_name_that_is_loaded_again_frees_what_it_pointed_at_and_needs_no_room_for_both() {
    let catalog = Catalog::new(alone());
    assert_eq!(load(&catalog, "a", adapter(1, 1.0, 2.0)), Ok(None));
    assert_eq!(load(&catalog, "a", adapter(2, 3.0, 4.0)), Ok(Some(Digest([1; 32]))));
    assert_eq!(load(&catalog, "a", adapter(2, 3.0, 4.0)), Ok(None), "the same again");
    assert_eq!(catalog.remove("a"), Some(Some(Digest([2; 32]))));
    assert_eq!(catalog.bytes(), 0);
    // Without `replace` it stays as it is.
    load(&catalog, "a", adapter(1, 1.0, 2.0)).unwrap();
    let new =
        NewName { name: "a", source: Source::BuiltIn, text: None, created: 0, replace: false };
    let taken = catalog.load(new, Digest([2; 32]), || panic!("nobody may read it")).unwrap_err();
    assert_eq!(taken, LoadError::Name(NameError::Taken("a".into())));
    assert_eq!(catalog.get("a").unwrap().adapter.digest, Digest([1; 32]));
}

#[test]
fn two_loads_at_once_never_exceed_the_budget_together() {
    let one = alone();
    for _ in 0..50 {
        let catalog = Catalog::new(2 * one - 1);
        let barrier = Barrier::new(2);
        let results = thread::scope(|scope| {
            let start = |digest: u8| {
                let (catalog, barrier) = (&catalog, &barrier);
                scope.spawn(move || {
                    let name = format!("a{digest}");
                    let source = Source::Request(name.clone());
                    let new =
                        NewName { name: &name, source, text: None, created: 0, replace: false };
                    // Both are under way before either is there.
                    let lower = || {
                        barrier.wait();
                        Ok(adapter(digest, f32::from(digest), -f32::from(digest)))
                    };
                    catalog.load(new, Digest([digest; 32]), lower).map(|_| ())
                })
            };
            [1, 2].map(start).map(|thread| thread.join().unwrap())
        });
        let full = |r: &&Result<(), LoadError>| matches!(r, Err(LoadError::Full(_)));
        assert_eq!(results.iter().filter(full).count(), 1, "{results:?}");
        assert_eq!((catalog.bytes(), catalog.list().len()), (one, 1));
    }
}

#[test]
fn of_many_that_want_one_content_one_lowers_it() {
    let (catalog, lowered) = (Catalog::new(alone()), AtomicUsize::new(0));
    thread::scope(|scope| {
        for i in 0..8 {
            let (catalog, lowered) = (&catalog, &lowered);
            scope.spawn(move || {
                let name = format!("a{i}");
                let new = NewName {
                    name: &name,
                    source: Source::BuiltIn,
                    text: None,
                    created: 0,
                    replace: false,
                };
                let lower = || {
                    lowered.fetch_add(1, Ordering::SeqCst);
                    thread::sleep(std::time::Duration::from_millis(20));
                    Ok(adapter(1, 1.0, 2.0))
                };
                catalog.load(new, Digest([1; 32]), lower).unwrap();
            });
        }
    });
    assert_eq!(lowered.load(Ordering::SeqCst), 1);
    assert_eq!((catalog.list().len(), catalog.bytes()), (8, alone()));
}

#[test]
fn a_load_that_panics_leaves_nothing_and_nobody_waiting() {
    let catalog = Catalog::new(alone());
    let new =
        || NewName { name: "a", source: Source::BuiltIn, text: None, created: 0, replace: false };
    thread::scope(|scope| {
        let panics = scope.spawn(|| {
            let lower = || panic!("a panic for a test");
            catalog.load(new(), Digest([1; 32]), lower).map(|_| ())
        });
        assert!(panics.join().is_err());
    });
    assert_eq!((catalog.get("a").is_none(), catalog.bytes()), (true, 0));
    load(&catalog, "a", adapter(1, 1.0, 2.0)).unwrap();
}

#[test]
fn adapters_that_hold_equal_matrices_share_them() {
    let catalog = Catalog::new(u64::MAX);
    load(&catalog, "one", adapter(1, 1.0, 2.0)).unwrap();
    // The same A, another B.
    load(&catalog, "another", adapter(2, 1.0, 3.0)).unwrap();
    let [one, other] = ["one", "another"].map(|name| catalog.get(name).unwrap().adapter);
    let shared = one
        .delta
        .pools
        .iter()
        .filter(|pool| other.delta.pools.iter().any(|of_other| Arc::ptr_eq(pool, of_other)));
    assert_eq!(shared.count(), 1, "A is there once");
    assert_eq!(catalog.bytes(), 2 * alone() - FACTOR_BYTES);
    // What is shared stays as long as one of them needs it.
    catalog.remove("one");
    assert_eq!(catalog.bytes(), alone());
}
