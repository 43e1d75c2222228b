//! Random schedules: each is made from its seed alone.

use fastrand::Rng;

use crate::ledger::{Violation, at_rest};
use crate::world::{Move, World};
use crate::{Promise, Setting};

/// A schedule longer than this does not come to rest.
const LONGEST: usize = 20_000;

/// So many ticks in which nothing else happens are a rest: longer than the desk of a worker long gone is kept.
const REST: usize = 40;

/// What came of a schedule.
#[derive(Debug)]
pub struct Schedule {
    /// The first promise that was broken.
    pub violation: Option<Violation>,
    /// How many moves it had.
    pub moves: usize,
    /// What happened, move by move, if that was asked for.
    pub trace: Vec<String>,
}

/// Runs the schedule of a seed: chaos first, then everything is mended, and comes to rest.
pub fn run(setting: &Setting, seed: u64, told: bool) -> Schedule {
    let mut rng = Rng::with_seed(seed);
    let mut world = World::new(setting);
    let mut possible = Vec::new();
    let mut trace = Vec::new();
    // Some are much slower than others, and that changes.
    let mut speed: Vec<u32> = world.processes.iter().map(|_| 1 << rng.u32(0..7)).collect();
    let rarely = rng.u32(10..80);
    let mut pace = Pace::draw(&mut rng);
    // Some time passes after the last fault before all is mended.
    let mut left = rng.u32(0..200);
    let mut ticks = 0;
    for moves in 0..LONGEST {
        if let Some(violation) = world.ledger.violation.take() {
            return Schedule { violation: Some(violation), moves, trace };
        }
        if rng.u32(0..64) == 0 {
            let slow = rng.usize(0..speed.len());
            speed[slow] = 1 << rng.u32(0..7);
            pace = Pace::draw(&mut rng);
        }
        world.moves(setting, &mut possible);
        left -= u32::from(world.faults == 0 && left > 0);
        let mending = world.faults == 0 && left == 0;
        let fault = !mending && rng.u32(0..rarely) == 0;
        let Some(mut step) = choose(&possible, &mut rng, &speed, pace, fault, mending) else {
            return Schedule { violation: at_rest(&world, setting), moves, trace };
        };
        if step == Move::Tick && possible.iter().all(|step| *step == Move::Tick || step.is_fault()) {
            ticks += 1;
            if mending && at_rest(&world, setting).is_none() {
                return Schedule { violation: None, moves, trace };
            }
            if ticks > REST {
                if mending {
                    return Schedule { violation: at_rest(&world, setting), moves, trace };
                }
                // Nothing happens any more, and faults are left.
                (world.faults, left, ticks) = (0, 0, 0);
            }
        } else {
            ticks = 0;
        }
        if let Move::Do { process, at, .. } = &mut step
            && setting.stale
            && rng.u32(0..4) == 0
        {
            let seen = world.processes[*process].session.map_or(*at, |session| world.sessions[session].seen);
            *at = rng.i64(seen.min(*at)..=*at);
        }
        trace.extend(world.apply(setting, step, told));
    }
    let what = format!("it goes on after {LONGEST} moves");
    Schedule { violation: Some(Violation { promise: Promise::Rest, what }), moves: LONGEST, trace }
}

/// How likely some moves are, against 1 to 64 for each step of a process: commands take no time, or they outlast the faults.
#[derive(Clone, Copy)]
struct Pace {
    ends: u32,
    tick: u32,
    mends: u32,
}

impl Pace {
    fn draw(rng: &mut Rng) -> Self {
        let mut some = |of: &[u32]| of[rng.usize(0..of.len())];
        Pace { ends: some(&[0, 0, 1, 16]), tick: some(&[1, 4, 16, 64]), mends: some(&[0, 1, 16]) }
    }
}

fn choose(possible: &[Move], rng: &mut Rng, speed: &[u32], pace: Pace, fault: bool, mending: bool) -> Option<Move> {
    let weight = |step: &Move| match step {
        step if step.is_fault() => u32::from(fault),
        _ if fault => 0,
        Move::Do { process, .. } => speed[*process],
        Move::Tick if mending && possible.len() > 1 => 1,
        Move::Tick => pace.tick,
        Move::Ends(_) if !mending => pace.ends,
        Move::Thaws(_) | Move::Mended(_) | Move::Starts(_) | Move::GivesUp(_) if !mending => pace.mends,
        Move::GuardEnds(_)
        | Move::LeashOut(_)
        | Move::GuardKills(_)
        | Move::Late(_)
        | Move::Ends(_)
        | Move::Expires(_) => 10,
        _ => 4,
    };
    let total: u32 = possible.iter().map(weight).sum();
    if total == 0 {
        return possible.iter().find(|step| !step.is_fault()).copied();
    }
    let mut draw = rng.u32(0..total);
    possible.iter().copied().find(|step| {
        let weight = weight(step);
        let hit = draw < weight;
        draw = draw.saturating_sub(weight);
        hit
    })
}
