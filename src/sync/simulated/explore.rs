//! Decides which thread runs next.

use super::{Pace, World, tick, world};
use shuttle::scheduler::{RandomScheduler, Schedule, Scheduler, Task, TaskId};
use shuttle::{Config, Runner};

/// The first thread that a test starts is the clock.
const CLOCK: usize = 1;

/// Runs the clock at its pace, and the threads at random.
struct Paced {
    random: RandomScheduler,
    pace: Pace,
    /// Switches threads once in this many steps: some bugs need one thread to get far while another
    /// stands still.
    slice: u64,
    /// The same sequence for the same seed, not counted by shuttle.
    dice: u64,
}

impl Paced {
    fn once_in(&mut self, times: u64) -> bool {
        // Knuth's constants.
        self.dice = self
            .dice
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.dice >> 33) % times == 0
    }
}

impl Scheduler for Paced {
    fn new_execution(&mut self) -> Option<Schedule> {
        let schedule = self.random.new_execution()?;
        self.dice = schedule.seed;
        self.slice = [1, 4, 16][usize::try_from(schedule.seed % 3).unwrap()];
        world(|world| *world = World::new());
        Some(schedule)
    }

    fn next_task(
        &mut self,
        runnable: &[&Task],
        current: Option<TaskId>,
        is_yielding: bool,
    ) -> Option<TaskId> {
        let clock = TaskId::from(CLOCK);
        let child = world(|world| world.child);
        let others = runnable.iter().copied().filter(|task| {
            let number = usize::from(task.id());
            let exists = |(forker, next)| number == forker || number >= next;
            // Shuttle also offers parked threads, for spurious wakeups.
            task.runnable() && number != CLOCK && child.is_none_or(exists)
        });
        let others: Vec<&Task> = others.collect();
        let (over, waking) = world(|world| {
            world.idle = others.is_empty();
            (world.over, world.waking)
        });
        if over {
            return None;
        }
        let ticks = runnable.iter().any(|task| task.id() == clock);
        assert!(
            ticks || !others.is_empty(),
            "the child waits for a thread that it does not have"
        );
        if waking || ticks && (others.is_empty() || self.pace == Pace::Any && self.once_in(24)) {
            return Some(clock);
        }
        if !self.once_in(self.slice) && others.iter().any(|task| Some(task.id()) == current) {
            return current;
        }
        self.random.next_task(&others, current, is_yielding)
    }

    fn next_u64(&mut self) -> u64 {
        self.random.next_u64()
    }
}

/// Runs a test with many schedules: `SHUTTLE_ITERATIONS` of them. To reproduce a failure, set
/// `SHUTTLE_RANDOM_SEED` to the printed seed.
pub fn explore(pace: Pace, test: fn()) {
    // Tests share the product's statics.
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = ONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let iterations = std::env::var("SHUTTLE_ITERATIONS");
    let iterations = iterations.map_or(2000, |number| number.parse().unwrap());
    let scheduler = Paced {
        random: RandomScheduler::new(iterations),
        pace,
        slice: 1,
        dice: 0,
    };
    let mut config = Config::new();
    config.stack_size = 0x80000;
    config.silence_warnings = true;
    let begun = std::time::Instant::now();
    let tried = Runner::new(scheduler, config).run(move || {
        drop(shuttle::thread::spawn(|| while tick() {}));
        test();
    });
    let this = std::thread::current();
    let name = this.name().unwrap_or_default();
    println!("{name}: {tried} schedules in {:.1?}", begun.elapsed());
}
