//! Calls whose every fate is known: the actor writes down each that it handles, the caller how each
//! ended, and the two books are compared.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use footlight::{cluster::NodeBuilder, prelude::*};

/// Handle the call of this number, and say so.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Work {
    pub(crate) number: u64,
}

impl Message for Work {
    type Reply = u64;
    const NAME: &'static str = "test.work";
}

/// Which of them are you?
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Who;

impl Message for Who {
    type Reply = String;
    const NAME: &'static str = "test.who";
}

/// What a tally is started with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TallyArgs {
    /// Its name among its like.
    pub(crate) name: String,
    /// Where all of them write what they handle, on whichever node.
    pub(crate) book: PathBuf,
}

/// Writes down what it handles.
pub(crate) struct Tally {
    name: String,
    book: File,
}

pub(crate) fn register_tally(builder: NodeBuilder) -> NodeBuilder {
    builder.register::<Tally>(|tally| tally.handles::<Work>().handles::<Who>())
}

impl Actor for Tally {
    type Args = TallyArgs;
    const NAME: &'static str = "test.tally";

    async fn start(args: TallyArgs, _: &Context<Self>) -> Result<Self> {
        Ok(Tally { name: args.name, book: append(&args.book)? })
    }
}

impl Handler<Work> for Tally {
    async fn handle(&mut self, work: Work, _: &Context<Self>) -> u64 {
        // One write a line, so that those of several processes don't mix. What was written stays,
        // also if this process is killed the next moment.
        let line = format!("{}\n", work.number);
        self.book.write_all(line.as_bytes()).expect("the book of what was handled can be written");
        work.number
    }
}

impl Handler<Who> for Tally {
    async fn handle(&mut self, _: Who, _: &Context<Self>) -> String {
        self.name.clone()
    }
}

/// Opens a file that lines are added to.
pub(crate) fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Answered,
    /// With the kind of the cause.
    NotSent(String),
    MayHaveRun(String),
}

impl Outcome {
    pub(crate) fn of(answer: &Result<u64, CallError>) -> Self {
        match answer {
            Ok(_) => Outcome::Answered,
            Err(error) => {
                let kind = format!("{:?}", error.cause());
                let kind = kind.split(['(', ' ']).next().unwrap_or_default().to_owned();
                match error.fate() {
                    Fate::NotSent => Outcome::NotSent(kind),
                    Fate::MayHaveRun => Outcome::MayHaveRun(kind),
                }
            }
        }
    }
}

/// As it is written down.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Answered => f.write_str("answered"),
            Outcome::NotSent(why) => write!(f, "not_sent {why}"),
            Outcome::MayHaveRun(why) => write!(f, "may_have_run {why}"),
        }
    }
}

impl FromStr for Outcome {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.split_once(' ').unwrap_or((text, "")) {
            ("answered", "") => Ok(Outcome::Answered),
            ("not_sent", why) => Ok(Outcome::NotSent(why.to_owned())),
            ("may_have_run", why) => Ok(Outcome::MayHaveRun(why.to_owned())),
            _ => Err(format!("no end of a call: {text}")),
        }
    }
}

/// Calls a tally, and says how that ended; `None` if it did not end although its time was over.
pub(crate) async fn call_tally(
    tally: &ActorRef<Tally>,
    number: u64,
    patience: Duration,
    grace: Duration,
) -> Option<Outcome> {
    let call = tally.call_within(Work { number }, patience);
    let answer = tokio::time::timeout(patience + grace, call).await.ok()?;
    if let Ok(answered) = &answer {
        assert_eq!(*answered, number, "an answer to another call");
    }
    Some(Outcome::of(&answer))
}

/// How often each call was handled.
pub(crate) fn read_book(book: &Path) -> io::Result<BTreeMap<u64, u32>> {
    let mut handled = BTreeMap::new();
    for line in fs::read_to_string(book)?.lines() {
        let number = line.parse().map_err(io::Error::other)?;
        *handled.entry(number).or_insert(0) += 1;
    }
    Ok(handled)
}

/// What is wrong between what the callers know and what was handled: nothing, if all promises hold.
pub(crate) fn breaches(
    calls: &BTreeMap<u64, Outcome>,
    handled: &BTreeMap<u64, u32>,
) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (number, times) in handled {
        if *times > 1 {
            found.insert(format!("call {number} was handled {times} times"));
        }
    }
    for (number, outcome) in calls {
        match (outcome, handled.contains_key(number)) {
            (Outcome::Answered, false) => {
                found.insert(format!("call {number} was answered and never handled"));
            }
            (Outcome::NotSent(why), true) => {
                found.insert(format!("call {number} was not sent ({why}), and was handled"));
            }
            _ => {}
        }
    }
    found
}
