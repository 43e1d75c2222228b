//! Every schedule of a small setting: all interleavings of all requests, faults, deaths, late packets and ticks, once each.
//!
//! Breadth first, so that the first violation found is a shortest one. A state is known by a hash of 128 bits of all that
//! there is in it. What is bounded: who takes part and how many faults there are; and reads see the latest transaction,
//! unless the server has lost the quorum. Time has no end, but counts up to the session timeout: no desk is old enough to
//! be removed. The search begins when the daemons have registered and
//! a primary reigns, before anything is submitted.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use crate::Setting;
use crate::ledger::{Violation, at_rest};
use crate::process::{Brain, Life};
use crate::world::{Move, World};

/// What was searched, and what was found.
#[derive(Debug)]
pub struct Search {
    /// How many states there are.
    pub states: usize,
    /// How many moves lead from one to another.
    pub moves: usize,
    /// How many moves the longest way to a new state has.
    pub depth: usize,
    /// In how many of them everything has come to rest.
    pub rests: usize,
    /// Whether there is none left.
    pub complete: bool,
    /// The first promise that was broken, and the moves that lead there.
    pub violation: Option<(Violation, Vec<String>)>,
}

/// Searches at most so many states.
pub fn exhaust(setting: &Setting, most: usize) -> Search {
    let first = booted(setting);
    let mut known = HashSet::from([fingerprint(&first)]);
    // From where each state was reached, and how.
    let mut ways: Vec<(usize, Option<Move>)> = vec![(0, None)];
    let mut layer = vec![(0, first.clone())];
    let mut search = Search { states: 1, moves: 0, depth: 0, rests: 0, complete: false, violation: None };
    let mut possible = Vec::new();
    while !layer.is_empty() {
        let mut next = Vec::new();
        for (index, world) in layer {
            world.moves(setting, &mut possible);
            if is_rest(&world, &possible) {
                search.rests += 1;
                if let Some(violation) = at_rest(&world, setting) {
                    search.violation = Some((violation, told(setting, first, &ways, index)));
                    return search;
                }
            }
            for step in &possible {
                let mut after = world.clone();
                after.apply(setting, *step, false);
                after.forget();
                search.moves += 1;
                if !known.insert(fingerprint(&after)) {
                    continue;
                }
                ways.push((index, Some(*step)));
                if let Some(violation) = after.ledger.violation.take() {
                    let trace = told(setting, first, &ways, ways.len() - 1);
                    search.violation = Some((violation, trace));
                    return search;
                }
                search.states += 1;
                if search.states >= most {
                    return search;
                }
                next.push((ways.len() - 1, after));
            }
        }
        layer = next;
        search.depth += usize::from(!layer.is_empty());
    }
    search.complete = true;
    search
}

/// The daemons have done all that there is to do; the clients have not begun.
fn booted(setting: &Setting) -> World {
    let mut world = World::new(setting);
    let mut possible = Vec::new();
    loop {
        world.moves(setting, &mut possible);
        let daemon = |process: usize| !matches!(world.processes[process].brain, Brain::Client(_));
        let step = possible.iter().find(|step| matches!(step, Move::Do { process, .. } if daemon(*process)));
        let Some(step) = step.copied() else { break };
        world.apply(setting, step, false);
    }
    world.forget();
    world
}

/// Nothing happens any more, now or later, but for faults.
fn is_rest(world: &World, possible: &[Move]) -> bool {
    let over = |step: &Move| *step == Move::Tick || step.is_fault();
    let used = |session| world.processes.iter().any(|process| process.session == Some(session));
    possible.iter().all(over)
        && world
            .processes
            .iter()
            .all(|process| process.life == Life::Running || matches!(process.brain, Brain::Client(_)))
        && world.sessions.iter().enumerate().all(|(index, session)| !session.open || used(index))
}

fn fingerprint(world: &World) -> u128 {
    let hash = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        salt.hash(&mut hasher);
        world.hash(&mut hasher);
        u128::from(hasher.finish())
    };
    hash(1) << 64 | hash(2)
}

/// The moves that lead to a state, each as a line.
fn told(setting: &Setting, mut world: World, ways: &[(usize, Option<Move>)], mut index: usize) -> Vec<String> {
    let mut steps = Vec::new();
    while let (before, Some(step)) = ways[index] {
        steps.push(step);
        index = before;
    }
    steps.into_iter().rev().filter_map(|step| world.apply(setting, step, true)).collect()
}
