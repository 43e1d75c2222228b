//! The protocol keeps its promises in random schedules, and the model notices when a rule is taken out.
//!
//! `MODEL_SCHEDULES=1000000 cargo test --release -p model` runs more of them; a failing one is printed with its seed,
//! and `cargo run -p model -- --schedules 1 --seed SEED --trace` tells it step by step.

use std::collections::BTreeSet;

use model::{Hands, Mutation, Promise, Setting, Submit, search, walk};

/// How many schedules a test of the whole protocol runs.
fn schedules() -> u64 {
    std::env::var("MODEL_SCHEDULES").map_or(10_000, |number| number.parse().expect("MODEL_SCHEDULES is a number"))
}

#[track_caller]
fn clean(setting: &Setting, schedules: u64) {
    for seed in 0..schedules {
        let schedule = walk::run(setting, seed, false);
        if let Some(violation) = schedule.violation {
            let trace = walk::run(setting, seed, true).trace;
            panic!("seed {seed} of {setting:?}: {violation}\n{}", trace.join("\n"));
        }
    }
}

/// A mutant must break one of these promises within so many schedules, and nothing else first.
#[track_caller]
fn caught(mutation: Mutation, hands: Hands, promises: &[Promise]) {
    let setting = Setting { mutation: Some(mutation), hands, ..Setting::default() };
    let broken = (0..40_000).find_map(|seed| walk::run(&setting, seed, false).violation);
    let broken = broken.unwrap_or_else(|| panic!("{mutation:?} is not noticed"));
    assert!(promises.contains(&broken.promise), "{mutation:?}: {broken}");
}

#[test]
fn without_a_fault_every_task_runs_once() {
    clean(&Setting { faults: 0, ..Setting::default() }, 2_000);
}

#[test]
fn promises_are_kept_whatever_crashes_freezes_expires_or_comes_late() {
    clean(&Setting::default(), schedules());
}

#[test]
fn promises_are_kept_when_hands_delete_master_and_registrations_and_cancel_tasks() {
    clean(&Setting { hands: Hands::Nodes, faults: 8, ..Setting::default() }, schedules() / 2);
}

#[test]
fn one_status_is_reached_whatever_hands_do_to_assignments() {
    // Two copies may run then (PROTOCOL section 5): the model does not ask for G2, G3 and G5.
    clean(&Setting { hands: Hands::Assignments, faults: 8, ..Setting::default() }, schedules() / 2);
}

#[test]
fn a_schedule_is_its_seed() {
    let traces: BTreeSet<Vec<String>> = (0..3).map(|_| walk::run(&Setting::default(), 7, true).trace).collect();
    assert_eq!(traces.len(), 1);
    assert!(traces.iter().all(|trace| trace.len() > 50));
}

#[test]
fn without_the_kill_deadline_two_attempts_overlap() {
    caught(Mutation::NoDeadline, Hands::None, &[Promise::G3]);
}

#[test]
fn under_the_same_instance_after_the_deadline_a_task_hangs_or_starts_again() {
    caught(Mutation::SameInstance, Hands::None, &[Promise::G1, Promise::G2, Promise::G3]);
}

#[test]
fn with_reads_as_proof_two_attempts_overlap() {
    caught(Mutation::ReadsProve, Hands::None, &[Promise::G3]);
}

#[test]
fn without_live_a_new_session_looks_like_a_loss() {
    caught(Mutation::NoLive, Hands::None, &[Promise::G2, Promise::G3]);
}

#[test]
fn with_live_made_after_the_old_session_ends_a_new_session_looks_like_a_loss() {
    caught(Mutation::LiveAfterClosing, Hands::None, &[Promise::G2, Promise::G3]);
}

#[test]
fn without_the_instance_check_a_start_is_not_counted() {
    caught(Mutation::NoInstanceCheck, Hands::None, &[Promise::G2, Promise::G3]);
}

#[test]
fn assigned_before_the_old_assignment_is_deleted_a_start_is_not_counted() {
    caught(Mutation::CreateFirst, Hands::None, &[Promise::G2]);
}

#[test]
fn deleted_before_it_is_recorded_a_start_is_forgotten() {
    caught(Mutation::DeleteFirst, Hands::None, &[Promise::G2]);
}

#[test]
fn without_the_removal_of_duplicates_one_submit_runs_twice() {
    caught(Mutation::KeepDuplicates, Hands::None, &[Promise::G3, Promise::G5]);
}

#[test]
fn a_client_that_does_not_look_reports_a_task_that_does_not_count() {
    caught(Mutation::SubmitAgain, Hands::None, &[Promise::G1, Promise::G5]);
}

#[test]
fn without_fence_and_closing_an_assignment_of_a_deposed_master_is_run() {
    caught(Mutation::NoFenceNoClosing, Hands::None, &[Promise::G3, Promise::G4]);
}

#[test]
fn closing_does_not_cover_the_fence_when_a_hand_deletes_master() {
    caught(Mutation::NoFence, Hands::Nodes, &[Promise::G4]);
}

#[test]
fn what_is_covered_by_another_rule_is_not_missed() {
    for mutation in [Mutation::NoFence, Mutation::NoClosing, Mutation::NoSync] {
        clean(&Setting { mutation: Some(mutation), ..Setting::default() }, 1_000);
    }
}

#[test]
fn every_schedule_without_faults_of_a_small_setting_keeps_the_promises() {
    for no_requeue in [false, true] {
        let submits = vec![Submit { no_requeue, fails: !no_requeue, retries: 1 }];
        let small = Setting { masters: 2, workers: 2, submits, faults: 0, stale: false, ..Setting::default() };
        let found = search::exhaust(&small, 100_000);
        assert_eq!(found.violation, None);
        assert!(found.complete && found.rests > 0, "{found:?}");
    }
}
