//! An actor that writes down when it begins and when it has stopped, so that a test sees what ran
//! when, on whichever node.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use footlight::{cluster::NodeBuilder, prelude::*, runtime::NodeId};

use super::append;

/// What a diary is started with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct DiaryArgs {
    pub(crate) name: String,
    /// Where all of them write.
    pub(crate) book: PathBuf,
    /// Stopping takes so long.
    pub(crate) slow: Duration,
}

/// The actor.
pub(crate) struct Diary {
    args: DiaryArgs,
    book: File,
}

/// Panic with this text.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Break(pub(crate) String);

impl Message for Break {
    type Reply = ();
    const NAME: &'static str = "test.diary.break";
}

pub(crate) fn register_diary(builder: NodeBuilder) -> NodeBuilder {
    builder.register::<Diary>(|diary| diary.handles::<Break>())
}

impl Diary {
    /// One write a line, so that those of several processes don't mix.
    fn write(&mut self, what: &str, node: NodeId) -> io::Result<()> {
        let line = format!("{what} {} {node}\n", self.args.name);
        self.book.write_all(line.as_bytes())
    }
}

impl Actor for Diary {
    type Args = DiaryArgs;
    const NAME: &'static str = "test.diary";

    async fn start(args: DiaryArgs, context: &Context<Self>) -> Result<Self> {
        let book = append(&args.book)?;
        let mut diary = Diary { args, book };
        diary.write("begun", context.system().node())?;
        Ok(diary)
    }

    async fn stopped(&mut self, context: &Context<Self>) {
        tokio::time::sleep(self.args.slow).await;
        self.write("ended", context.system().node()).expect("the book can be written");
    }
}

impl Handler<Break> for Diary {
    async fn handle(&mut self, text: Break, context: &Context<Self>) {
        self.write("ended", context.system().node()).expect("the book can be written");
        panic!("{}", text.0)
    }
}

/// A line of the book: whether it begins, who, where.
pub(crate) type Line = (bool, String, NodeId);

pub(crate) fn read_diary(book: &Path) -> Vec<Line> {
    let line = |line: &str| {
        let [what, name, node] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        (what == "begun", name.to_owned(), node.parse().unwrap())
    };
    fs::read_to_string(book).unwrap().lines().map(line).collect()
}
