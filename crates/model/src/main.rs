//! Runs random schedules of the model, or searches all of a small setting.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use model::{Hands, Mutation, Setting, Submit, search, walk};

/// Drives the decisions of master, worker and client through random schedules of faults, and says which promise breaks.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// How many schedules
    #[arg(long, default_value_t = 10_000)]
    schedules: u64,

    /// The seed of the first one; the others follow
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// How many faults in each, hand actions included
    #[arg(long, default_value_t = 6)]
    faults: u8,

    /// What somebody does by hand
    #[arg(long, value_enum, default_value_t = Hands::None)]
    hands: Hands,

    /// A rule to take out of the protocol
    #[arg(long, value_enum)]
    mutation: Option<Mutation>,

    /// Prints what happens in the first schedule, step by step, whether it breaks anything or not
    #[arg(long)]
    trace: bool,

    /// Searches every schedule of a small setting instead, up to so many states: one task, and the masters,
    /// workers and faults of these options
    #[arg(long, value_name = "STATES")]
    search: Option<usize>,

    /// With --search: how many masters
    #[arg(long, default_value_t = 2)]
    masters: u8,

    /// With --search: how many workers
    #[arg(long, default_value_t = 1)]
    workers: u8,

    /// With --search: the task may start once only
    #[arg(long)]
    no_requeue: bool,
}

#[expect(clippy::print_stdout, reason = "what it finds is its result")]
fn main() -> ExitCode {
    let args = Args::parse();
    let begun = Instant::now();
    let setting = Setting { faults: args.faults, hands: args.hands, mutation: args.mutation, ..Setting::default() };
    if let Some(most) = args.search {
        let submits = vec![Submit { no_requeue: args.no_requeue, fails: false, retries: 0 }];
        let setting = Setting { masters: args.masters, workers: args.workers, submits, stale: false, ..setting };
        let found = search::exhaust(&setting, most);
        let whole = if found.complete { "all" } else { "the first" };
        println!(
            "{whole} {} states, {} moves between them, up to {} moves deep, {} at rest, in {:.0} s",
            found.states,
            found.moves,
            found.depth,
            found.rests,
            begun.elapsed().as_secs_f64()
        );
        let Some((violation, trace)) = found.violation else { return ExitCode::SUCCESS };
        println!("{}\n{violation}", trace.join("\n"));
        return ExitCode::FAILURE;
    }
    let mut first = args.trace.then_some(args.seed);
    let mut broken: BTreeMap<_, u64> = BTreeMap::new();
    let mut moves = 0;
    for seed in args.seed..args.seed + args.schedules {
        let schedule = walk::run(&setting, seed, false);
        moves += schedule.moves;
        if let Some(violation) = schedule.violation {
            *broken.entry(violation.promise).or_default() += 1;
            first.get_or_insert(seed);
        }
    }
    let took = begun.elapsed().max(Duration::from_millis(1)).as_secs_f64();
    let (schedules, each) = (args.schedules, moves as f64 / args.schedules.max(1) as f64);
    println!("{schedules} schedules of {each:.0} moves, {:.0} a second: {broken:?}", schedules as f64 / took);
    if let Some(seed) = first {
        let schedule = walk::run(&setting, seed, true);
        println!("seed {seed}:\n{}", schedule.trace.join("\n"));
        println!("{}", schedule.violation.map_or("nothing is broken".to_owned(), |violation| violation.to_string()));
    }
    if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
