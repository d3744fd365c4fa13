//! What a user may choose before the first use, and what is wrong with it.

use std::fmt;
use std::time::Duration;

use crate::core::Shape;
use crate::detached::{MOST_RESERVE, MOST_SLOTS as MOST_ACCOUNT_SLOTS};

/// Choices; none means as it is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Config {
    pub slots: Option<usize>,
    pub heartbeat_ms: Option<f64>,
    pub first_batch: Option<u32>,
    pub largest_batch: Option<u32>,
    pub reserve: Option<u32>,
    pub account_slots: Option<usize>,
}

/// Why a choice is refused. Nothing has been changed then.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ConfigError {
    /// A value that makes no sense: ValueError.
    Nonsense(String),
    /// Buffers exist: RuntimeError.
    TooLate,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::Nonsense(what) => f.write_str(what),
            ConfigError::TooLate => f.write_str(
                "slots, first_batch, largest_batch and account_slots are fixed once a thread has a buffer: \
                 call refbuf.configure before threads share objects through refbuf",
            ),
        }
    }
}

/// The longest heartbeat: a minute.
const LONGEST_HEARTBEAT_MS: f64 = 60_000.0;
/// The shortest: below it the settler does little else.
const SHORTEST_HEARTBEAT_MS: f64 = 0.5;
/// The largest acquire.
const LARGEST_BATCH: u32 = 1 << 15;

impl Config {
    /// Whether any choice concerns the shape of buffers.
    pub(crate) fn reshapes(&self) -> bool {
        self.slots.is_some() || self.first_batch.is_some() || self.largest_batch.is_some()
    }

    /// The shape that these choices make of `shape`.
    pub(crate) fn shape(&self, mut shape: Shape) -> Result<Shape, ConfigError> {
        if let Some(slots) = self.slots {
            shape.slots = checked_slots("slots", slots, Shape::MOST_SLOTS)?;
        }
        if let Some(batch) = self.first_batch {
            shape.first_batch = log2_of_batch("first_batch", batch)?;
        }
        if let Some(batch) = self.largest_batch {
            shape.largest_batch = log2_of_batch("largest_batch", batch)?;
        }
        if shape.first_batch > shape.largest_batch {
            return Err(ConfigError::Nonsense(format!(
                "first_batch ({}) must not be above largest_batch ({})",
                1 << shape.first_batch,
                1 << shape.largest_batch
            )));
        }
        Ok(shape)
    }

    /// The slots of accounts' tables, if they are chosen.
    pub(crate) fn account_slots(&self) -> Result<Option<usize>, ConfigError> {
        self.account_slots.map(|slots| checked_slots("account_slots", slots, MOST_ACCOUNT_SLOTS)).transpose()
    }

    /// The reserve chosen, if one is.
    pub(crate) fn reserve(&self) -> Result<Option<u32>, ConfigError> {
        match self.reserve {
            Some(reserve) if !(1..=MOST_RESERVE).contains(&reserve) => {
                Err(ConfigError::Nonsense(format!("reserve must be from 1 to {MOST_RESERVE}, not {reserve}")))
            }
            reserve => Ok(reserve),
        }
    }

    /// The heartbeat chosen, if one is.
    pub(crate) fn heartbeat(&self) -> Result<Option<Duration>, ConfigError> {
        let Some(ms) = self.heartbeat_ms else { return Ok(None) };
        if !(SHORTEST_HEARTBEAT_MS..=LONGEST_HEARTBEAT_MS).contains(&ms) {
            return Err(ConfigError::Nonsense(format!(
                "heartbeat_ms must be from {SHORTEST_HEARTBEAT_MS} to {LONGEST_HEARTBEAT_MS}, not {ms}"
            )));
        }
        Ok(Some(Duration::from_secs_f64(ms / 1000.0)))
    }
}

fn checked_slots(name: &str, slots: usize, most: usize) -> Result<usize, ConfigError> {
    if slots.is_power_of_two() && (Shape::FEWEST_SLOTS..=most).contains(&slots) {
        Ok(slots)
    } else {
        let fewest = Shape::FEWEST_SLOTS;
        Err(ConfigError::Nonsense(format!("{name} must be a power of two from {fewest} to {most}, not {slots}")))
    }
}

fn log2_of_batch(name: &str, batch: u32) -> Result<u32, ConfigError> {
    if batch.is_power_of_two() && batch <= LARGEST_BATCH {
        Ok(batch.trailing_zeros())
    } else {
        Err(ConfigError::Nonsense(format!("{name} must be a power of two from 1 to {LARGEST_BATCH}, not {batch}")))
    }
}
