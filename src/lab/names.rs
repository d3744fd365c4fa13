//! What the schemes and the workloads are called.

use std::fmt;
use std::str::FromStr;

/// Names of one kind.
macro_rules! names {
    ($(#[$about:meta])* $kind:ident, $what:literal, $($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $kind { $($(#[$doc])* $variant,)* }

        impl $kind {
            /// All of them, in the order of the tables.
            pub const ALL: &'static [$kind] = &[$($kind::$variant),*];

            /// Its name on the command line.
            pub fn name(self) -> &'static str {
                match self { $($kind::$variant => $name,)* }
            }
        }

        impl FromStr for $kind {
            type Err = Unknown;

            fn from_str(name: &str) -> Result<$kind, Unknown> {
                $kind::ALL.iter().copied().find(|kind| kind.name() == name).ok_or_else(|| Unknown {
                    what: $what,
                    name: name.to_owned(),
                    known: $kind::ALL.iter().map(|kind| kind.name()).collect(),
                })
            }
        }
    };
}

names! {
    /// The schemes.
    SchemeName, "scheme",
    /// A lock that threads hand over.
    Plain = "plain",
    /// Atomic counts.
    Atomic = "atomic",
    /// Tulloss: a count for each thread, and one of threads.
    ThreadCount = "thread-count",
    /// Olsen: buffered deltas.
    Deltas = "deltas",
    /// CPython 3.13, free-threaded.
    Biased = "biased",
    /// refbuf.
    Credits = "credits",
}

names! {
    /// The programs.
    Workload, "workload",
    /// Nested calls with their literals.
    Calls = "calls",
    /// Cells of the thread's own.
    Private = "private",
    /// A shared graph, walked and rewired.
    Graph = "graph",
    /// From thread to thread.
    Pipeline = "pipeline",
    /// Short lives.
    Churn = "churn",
    /// Shared cells, few of them often.
    Zipf = "zipf",
}

/// No scheme, or workload, of that name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown {
    what: &'static str,
    name: String,
    known: Vec<&'static str>,
}

impl fmt::Display for Unknown {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "unknown {} {:?}: there are {}", self.what, self.name, self.known.join(", "))
    }
}

impl std::error::Error for Unknown {}
