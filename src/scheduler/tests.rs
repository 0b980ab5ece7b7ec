//! The rules, one by one. Random schedules are in tests/it/scheduler.rs.

use super::*;
use crate::ids::{Digest, TokenId};
use crate::recipe::Recipe;
use crate::request::Share;

/// Room for everything, blocks of 4 tokens.
const ROOMY: SchedulerConfig = SchedulerConfig {
    sequences_max: 4,
    batch_tokens_max: 16,
    block_tokens: 4,
    blocks: 100,
    queue_requests_max: 1000,
    logit_rows_max: 4,
    prefix_cache: true,
};

fn scheduler(config: SchedulerConfig) -> Scheduler {
    Scheduler::new(config).unwrap()
}

fn id(n: u64) -> SequenceId {
    SequenceId(n)
}

fn new(n: u64, prompt: &[TokenId], tokens_max: u32) -> NewSequence {
    NewSequence {
        id: id(n),
        prompt: prompt.to_vec(),
        recipe: Recipe::base(),
        salt: None,
        share: Share::default(),
        priority: 0,
        tokens_max,
        wanted: PromptRows::Nothing,
    }
}

/// A sequence of an adapter of its own.
fn adapted(n: u64) -> NewSequence {
    let recipe = Recipe::one(Digest([n.min(255) as u8; 32]));
    NewSequence { recipe, ..new(n, &own(n, 2), 1) }
}

/// A prompt that shares no block with another `n`'s.
fn own(n: u64, len: usize) -> Vec<TokenId> {
    (0..len as u32).map(|i| n as u32 * 1000 + i).collect()
}

fn plan(scheduler: &mut Scheduler) -> Plan {
    scheduler.plan(&mut |_| true)
}

/// Commits `plan`; every sampled token is 7.
fn commit(scheduler: &mut Scheduler, plan: &Plan) {
    let sampling = plan.entries.iter().filter(|entry| entry.draws);
    let results: Vec<_> = sampling.map(|entry| drew(entry.id, 7, false)).collect();
    scheduler.commit(plan, &results);
}

fn drew(id: SequenceId, token: TokenId, finished: bool) -> Committed {
    Committed { id, tokens: vec![token], finished }
}

fn step(scheduler: &mut Scheduler) -> Plan {
    let plan = plan(scheduler);
    commit(scheduler, &plan);
    plan
}

/// (id, start, rows, draws) of every entry.
fn rows(plan: &Plan) -> Vec<(u64, u32, usize, bool)> {
    plan.entries.iter().map(|e| (e.id.0, e.start, e.tokens.len(), e.draws)).collect()
}

#[test]
fn decode_rows_go_before_prefill_chunks_which_share_the_rest_by_arrival() {
    let mut s = scheduler(ROOMY);
    s.admit(new(0, &own(0, 3), 50)).unwrap();
    assert_eq!(rows(&step(&mut s)), [(0, 0, 3, true)]);
    s.admit(new(1, &own(1, 20), 50)).unwrap();
    s.admit(new(2, &own(2, 9), 50)).unwrap();
    assert_eq!(rows(&step(&mut s)), [(0, 3, 1, true), (1, 0, 15, false)]);
    assert_eq!(rows(&step(&mut s)), [(0, 4, 1, true), (1, 15, 5, true), (2, 0, 9, true)]);
    assert_eq!(rows(&step(&mut s)), [(0, 5, 1, true), (1, 20, 1, true), (2, 9, 1, true)]);
}

#[test]
fn a_block_table_covers_the_rows_and_no_more() {
    let mut s = scheduler(ROOMY);
    s.admit(new(0, &own(0, 18), 50)).unwrap();
    let lens = [step(&mut s), step(&mut s)].map(|plan| plan.entries[0].block_table.len());
    assert_eq!(lens, [4, 5]);
}

#[test]
fn a_sequence_that_cannot_run_is_passed_over_and_keeps_its_place() {
    let mut s = scheduler(SchedulerConfig { sequences_max: 1, ..ROOMY });
    for n in 0..3 {
        s.admit(adapted(n)).unwrap();
    }
    let plan = s.plan(&mut |asked| asked != id(0));
    assert_eq!(rows(&plan), [(1, 0, 2, true)]);
    commit(&mut s, &plan);
    assert_eq!(rows(&step(&mut s)), [(0, 0, 2, true)]);
}

#[test]
fn a_lower_priority_number_goes_first_and_equal_ones_by_arrival() {
    let mut s = scheduler(SchedulerConfig { sequences_max: 1, ..ROOMY });
    let priorities = [0, 5, i32::MAX, -1, 5, i32::MIN, 0];
    for (n, priority) in (0..).zip(priorities) {
        s.admit(NewSequence { priority, ..new(n, &own(n, 2), 1) }).unwrap();
    }
    let order: Vec<u64> = (0..7).map(|_| rows(&step(&mut s))[0].0).collect();
    assert_eq!(order, [5, 3, 0, 6, 1, 4, 2]);
}

#[test]
fn out_of_blocks_the_last_in_order_is_preempted_whenever_it_came() {
    let mut s = scheduler(SchedulerConfig { blocks: 4, prefix_cache: false, ..ROOMY });
    s.admit(NewSequence { priority: 1, ..new(0, &own(0, 4), 9) }).unwrap();
    s.admit(new(1, &own(1, 4), 9)).unwrap();
    for _ in 0..5 {
        assert_eq!(step(&mut s).entries.len(), 2);
    }
    assert_eq!(step(&mut s).preempted, [id(0)]);
}

#[test]
fn nobody_is_overtaken_without_bound() {
    let mut s = scheduler(SchedulerConfig { sequences_max: 1, ..ROOMY });
    // The first has got least, so that it is asked before all others, and cannot run.
    s.admit(adapted(0)).unwrap();
    for n in 1..=OVERTAKES_MAX as u64 + 1 {
        s.admit(adapted(n)).unwrap();
        let plan = s.plan(&mut |asked| asked != id(0));
        assert_eq!(plan.entries.len(), usize::from(n <= OVERTAKES_MAX as u64));
        commit(&mut s, &plan);
    }
    assert_eq!(rows(&step(&mut s))[0].0, 0);
}

#[test]
fn the_queue_is_bounded_and_what_can_never_fit_is_refused_at_the_door() {
    let mut s = scheduler(SchedulerConfig { blocks: 3, queue_requests_max: 2, ..ROOMY });
    // 12 positions: the last of 13 tokens needs none.
    s.admit(new(0, &own(0, 10), 3)).unwrap();
    let never = Err(Refused::NeverFits { blocks_needed: 4, blocks: 3 });
    assert_eq!(s.admit(new(1, &own(1, 10), 4)), never);
    s.admit(new(2, &own(2, 1), 1)).unwrap();
    let full = Err(Refused::QueueFull { queue_requests_max: 2 });
    assert_eq!(s.admit(new(3, &own(3, 1), 1)), full);
    s.cancel(id(0));
    s.admit(new(3, &own(3, 1), 1)).unwrap();
    assert!(matches!(s.admit(new(4, &[1], u32::MAX)), Err(Refused::NeverFits { .. })));
}

#[test]
fn a_batch_that_decodes_could_fill_is_a_configuration_error() {
    let config = SchedulerConfig { batch_tokens_max: 4, ..ROOMY };
    let error = Scheduler::new(config).unwrap_err();
    assert_eq!(error.to_string(), "batch_tokens_max must be above sequences_max (4), got 4");
    let error = Scheduler::new(SchedulerConfig { block_tokens: 0, ..ROOMY }).unwrap_err();
    assert_eq!(error, InvalidConfig::Zero("block_tokens"));
    let config = SchedulerConfig { blocks: 1 << 30, ..ROOMY };
    assert!(matches!(config.validated(), Err(InvalidConfig::TooManyPositions { .. })));
}

#[test]
fn out_of_blocks_the_youngest_is_preempted_and_comes_back_with_its_text() {
    let mut s = scheduler(SchedulerConfig { blocks: 4, prefix_cache: false, ..ROOMY });
    s.admit(new(0, &own(0, 4), 9)).unwrap();
    s.admit(new(1, &own(1, 4), 9)).unwrap();
    s.admit(new(2, &own(2, 4), 1)).unwrap();
    for _ in 0..5 {
        assert_eq!(step(&mut s).entries.len(), 2);
    }
    // Both hold 8 computed tokens in 2 blocks; the next row needs a third.
    let plan = step(&mut s);
    assert_eq!(plan.preempted, [id(1)]);
    assert_eq!(rows(&plan), [(0, 8, 1, true)]);
    assert_eq!((s.counts().waiting, s.counts().running), (2, 1));
    while s.counts().running == 1 {
        assert!(step(&mut s).preempted.is_empty());
    }
    let plan = step(&mut s);
    assert_eq!(rows(&plan), [(1, 0, 9, true), (2, 0, 4, true)]);
    assert_eq!(plan.entries[0].tokens, [1000, 1001, 1002, 1003, 7, 7, 7, 7, 7]);
}

#[test]
fn a_preempted_prefix_is_found_again_in_the_cache() {
    let mut s = scheduler(SchedulerConfig { blocks: 5, ..ROOMY });
    s.admit(new(0, &own(0, 4), 13)).unwrap();
    s.admit(new(1, &own(1, 4), 9)).unwrap();
    while s.counts().preemptions_total == 0 {
        step(&mut s);
    }
    s.cancel(id(0));
    let before = s.counts().prefix_hit_tokens_total;
    let plan = step(&mut s);
    assert_eq!((plan.entries[0].id, plan.entries[0].start), (id(1), 8));
    assert_eq!(s.counts().prefix_hit_tokens_total - before, 8);
    assert_eq!(s.cached_tokens(id(1)), Some(0), "its own work is no discount");
}

#[test]
fn a_computed_prefix_is_shared_and_the_last_prompt_token_is_computed() {
    let mut s = scheduler(ROOMY);
    let prompt = own(9, 8);
    s.admit(new(0, &prompt, 5)).unwrap();
    s.admit(new(1, &prompt, 5)).unwrap();
    // Not within the plan that computes it, which nobody computes again beside it.
    assert_eq!(rows(&step(&mut s)), [(0, 0, 8, true)]);
    s.admit(new(2, &prompt, 5)).unwrap();
    let plan = plan(&mut s);
    assert_eq!(rows(&plan), [(0, 8, 1, true), (1, 4, 4, true), (2, 4, 4, true)]);
    assert_eq!(plan.entries[2].block_table[0], plan.entries[0].block_table[0]);
    assert_ne!(plan.entries[2].block_table[1], plan.entries[0].block_table[1]);
    assert_eq!((s.cached_tokens(id(2)), s.cached_tokens(id(3))), (Some(4), None));
    assert_eq!(s.counts().prefix_hit_tokens_total, 8);
    assert_eq!(s.counts().prefix_query_tokens_total, 24);
}

#[test]
fn a_shared_prefix_leaves_room_that_a_text_of_its_own_would_need() {
    let mut s = scheduler(SchedulerConfig { blocks: 5, ..ROOMY });
    s.admit(new(0, &own(9, 8), 5)).unwrap();
    step(&mut s);
    // Sequence 0 holds 2 blocks and wants a third; 2 are left.
    s.admit(new(1, &own(1, 9), 1)).unwrap();
    assert_eq!(plan(&mut s).entries.len(), 1);
    s.cancel(id(1));
    s.admit(new(2, &own(9, 12), 1)).unwrap();
    assert_eq!(rows(&plan(&mut s))[1], (2, 8, 4, true));
    s.cancel(id(2));
    // Its last block is cached and yet computed again, into a block of its own.
    s.admit(new(3, &own(9, 8), 1)).unwrap();
    assert_eq!(rows(&plan(&mut s))[1], (3, 4, 4, true));
}

#[test]
fn a_prompt_that_another_is_computing_is_waited_for_and_taken_over() {
    let mut s = scheduler(SchedulerConfig { batch_tokens_max: 20, ..ROOMY });
    let prompt = own(9, 34);
    s.admit(new(0, &prompt, 5)).unwrap();
    s.admit(new(1, &prompt, 5)).unwrap();
    assert_eq!(rows(&step(&mut s)), [(0, 0, 20, false)]);
    // Who asks for something else goes on meanwhile.
    s.admit(new(2, &own(8, 9), 5)).unwrap();
    assert_eq!(rows(&step(&mut s)), [(0, 20, 14, true), (2, 0, 6, false)]);
    assert_eq!(rows(&step(&mut s)), [(0, 34, 1, true), (2, 6, 3, true), (1, 32, 2, true)]);
    assert_eq!(s.cached_tokens(id(1)), Some(32));
}

#[test]
fn kv_is_shared_under_one_digest_and_never_across_digests() {
    let mut s = scheduler(ROOMY);
    // The second is what a name points at after its adapter was replaced in place.
    let one = |n: u8| Recipe::one(Digest([n; 32]));
    let recipes = [Recipe::base(), one(1), one(2), one(1)];
    let mut starts = Vec::new();
    for (n, recipe) in recipes.into_iter().enumerate() {
        s.admit(NewSequence { recipe, ..new(n as u64, &own(9, 9), 1) }).unwrap();
        starts.push(step(&mut s).entries[0].start);
    }
    assert_eq!(starts, [0, 0, 0, 8]);
}

#[test]
fn a_cancelled_sequence_frees_its_blocks_at_once_and_its_result_is_ignored() {
    let mut s = scheduler(ROOMY);
    s.admit(new(0, &own(0, 9), 5)).unwrap();
    s.admit(new(1, &own(1, 5), 5)).unwrap();
    let planned = plan(&mut s);
    assert_eq!(s.counts().blocks_used, 5);
    s.cancel(id(0));
    s.cancel(id(0));
    assert_eq!(s.counts().blocks_used, 2);
    commit(&mut s, &planned);
    assert_eq!(rows(&step(&mut s)), [(1, 5, 1, true)]);
    // The rows that ran for nobody were not cached.
    s.admit(new(2, &own(0, 9), 5)).unwrap();
    assert_eq!(rows(&step(&mut s))[1], (2, 0, 9, true));
}

#[test]
fn a_plan_without_commit_and_a_row_without_result_run_again() {
    let mut s = scheduler(ROOMY);
    s.admit(new(0, &own(0, 8), 5)).unwrap();
    let first = plan(&mut s);
    let again = plan(&mut s);
    assert_eq!(first, again);
    s.commit(&again, &[]);
    assert_eq!(rows(&step(&mut s)), [(0, 7, 1, true)]);
    // What was decided before has no effect any more.
    s.commit(&first, &[drew(id(0), 5, true)]);
    assert_eq!(rows(&step(&mut s)), [(0, 8, 1, true)]);
}

#[test]
fn a_sequence_ends_at_tokens_max_or_when_the_caller_says_so() {
    let mut s = scheduler(ROOMY);
    s.admit(new(0, &own(0, 3), 2)).unwrap();
    s.admit(new(1, &own(1, 3), 50)).unwrap();
    step(&mut s);
    let planned = plan(&mut s);
    s.commit(&planned, &[drew(id(0), 7, false), drew(id(1), 7, true)]);
    let counts = s.counts();
    assert_eq!((counts.running, counts.waiting, counts.blocks_used), (0, 0, 0));
    assert_eq!(plan(&mut s), Plan::default());
}

#[test]
fn positions_where_an_adapter_is_not_active_yet_share_the_bases_blocks() {
    let mut s = scheduler(ROOMY);
    let prompt = own(9, 13);
    s.admit(new(0, &prompt, 1)).unwrap();
    step(&mut s);
    // Active from the sixth token on: the first block of four is the base's.
    let late = Recipe::one(Digest([1; 32])).active_from(5);
    s.admit(NewSequence { recipe: late.clone(), ..new(1, &prompt, 1) }).unwrap();
    assert_eq!(rows(&step(&mut s)), [(1, 4, 9, true)]);
    s.admit(NewSequence { recipe: late, ..new(2, &prompt, 1) }).unwrap();
    assert_eq!(rows(&step(&mut s)), [(2, 12, 1, true)]);
    let salt = Some(Digest([7; 32]));
    s.admit(NewSequence { salt, ..new(3, &prompt, 1) }).unwrap();
    assert_eq!(rows(&step(&mut s)), [(3, 0, 13, true)], "another salt shares nothing");
}

#[test]
fn one_commit_takes_several_tokens_and_they_are_computed_together() {
    let mut s = scheduler(ROOMY);
    s.admit(new(0, &own(0, 3), 5)).unwrap();
    let planned = plan(&mut s);
    let tokens = vec![7, 8, 9];
    s.commit(&planned, &[Committed { id: id(0), tokens, finished: false }]);
    assert_eq!(s.history(id(0)).unwrap().generated, [7, 8, 9]);
    let planned = plan(&mut s);
    assert_eq!(rows(&planned), [(0, 3, 3, true)]);
    // More than `tokens_max` leaves: the rest is dropped, and the sequence ends.
    let tokens = vec![10, 11, 12];
    s.commit(&planned, &[Committed { id: id(0), tokens, finished: false }]);
    assert_eq!((s.history(id(0)), s.counts().blocks_used), (None, 0));
}

#[test]
fn a_scored_prompt_is_computed_whole_in_as_many_steps_as_its_logits_take() {
    let mut s = scheduler(ROOMY);
    s.admit(new(0, &own(9, 8), 5)).unwrap();
    step(&mut s);
    let wanted = PromptRows::Logits;
    s.admit(NewSequence { wanted, ..new(1, &own(9, 8), 0) }).unwrap();
    // One of four logit rows is the decoding sequence's; the last row of a prompt has no token to
    // be scored by, and nothing is drawn here.
    assert_eq!(rows(&step(&mut s))[1], (1, 0, 3, false));
    assert_eq!(rows(&step(&mut s))[1], (1, 3, 3, false));
    assert_eq!(rows(&step(&mut s))[1], (1, 6, 2, false));
    assert_eq!(s.history(id(1)), None, "it ends with its prompt");
    s.admit(NewSequence { wanted, ..new(2, &own(2, 3), 1) }).unwrap();
    assert_eq!(rows(&step(&mut s))[1], (2, 0, 3, true));
}

#[test]
fn a_prompt_whose_hidden_states_are_wanted_is_computed_whole() {
    let mut s = scheduler(ROOMY);
    s.admit(new(0, &own(9, 9), 5)).unwrap();
    step(&mut s);
    s.admit(NewSequence { wanted: PromptRows::Hidden, ..new(1, &own(9, 9), 0) }).unwrap();
    assert_eq!(rows(&step(&mut s))[1], (1, 0, 9, false));
    assert_eq!(s.counts().running, 1);
}
