//! Every decoder of what others wrote, as a function of any bytes that must not panic. The fuzz targets in `fuzz/` look for bytes
//! with which one does; the tests replay those that were found to lead somewhere, in `corpus/`.

use znode_paths::{
    Address, Assignment, Attempt, Drain, Instance, Key, Live, LiveName, OutputPath, Status, Task, TaskKeys, TaskName,
    Worker, WorkerName, decode_epoch, paths,
};

/// A decoder, by the name of its folder in `corpus/`.
pub type Decoder = (&'static str, fn(&[u8]));

/// All of them.
pub const ALL: [Decoder; 6] = [
    ("task", task),
    ("documents", documents),
    ("names", names),
    ("connect", connect),
    ("session", zk_session::decode),
    ("http", zk_http::decode),
];

/// `/tasks/<task>`, and its signature: what is read is what would be written.
fn task(data: &[u8]) {
    let keys = TaskKeys::parse("0123456789abcdef").expect("it is long enough");
    if let Ok(task) = Task::decode(data) {
        assert!(keys.check(&task, data).is_err(), "signed without the key");
        assert_eq!(Task::decode(&task.encode()).as_ref(), Ok(&task), "it is read as another task");
        let signed = keys.sign(&task, 7);
        if task.meta.is_some() {
            assert_eq!(keys.check(&signed, &signed.encode()), Ok(7));
        }
    }
    Task::decode(&Task::removed(data).encode()).expect_err("what is removed is not run");
}

/// Every other znode.
fn documents(data: &[u8]) {
    Worker::decode(data).ok();
    // However long: it is written into a znode.
    assert!(Status::decode(data).encode().len() <= znode_paths::MAX_DATA.max(data.len()));
    Assignment::decode(data).encode();
    Attempt::decode(data).encode();
    Live::decode(data);
    Key::decode(data).encode();
    decode_epoch(data);
    for drain in [true, false] {
        assert_eq!(Drain::decode(&Drain::change(data, drain)).drain, drain);
    }
}

/// Names, paths, and the target of a request: what is understood is written the same way.
fn names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let same = |written: Option<String>| assert!(written.is_none_or(|written| written == text), "{text:?}");
    same(text.parse::<WorkerName>().ok().map(|name| name.to_string()));
    same(text.parse::<TaskName>().ok().map(|name| name.to_string()));
    same(text.parse::<Address>().ok().map(|address| address.to_string()));
    same(text.parse::<OutputPath>().ok().map(|path| path.to_string()));
    text.parse::<Instance>().ok();
    text.parse::<LiveName>().ok();
    paths::Place::of(text);
    paths::task_child(text);
    let keys = TaskKeys::parse("0123456789abcdef").expect("it is long enough");
    keys.check_request("/", Some(data)).expect_err("signed without the key");
}

fn connect(data: &[u8]) {
    if let Some(connect) =
        std::str::from_utf8(data).ok().and_then(|text| text.parse::<zk_session::ConnectString>().ok())
    {
        assert_eq!(connect.to_string().parse().as_ref(), Ok(&connect));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;
    use std::path::Path;

    #[test]
    fn nothing_that_was_found_makes_a_decoder_panic() {
        for (name, decode) in ALL {
            let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
            let files = fs::read_dir(&corpus).unwrap_or_else(|error| panic!("{}: {error}", corpus.display()));
            let files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
            assert!(!files.is_empty(), "{name}");
            files.iter().for_each(|file| decode(&fs::read(file).unwrap()));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_decoder_panic(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            ALL.iter().for_each(|(_, decode)| decode(&data));
        }

        #[test]
        fn no_text_that_is_nearly_right_makes_a_decoder_panic(
            text in "(\\PC{0,9}\n)?\\{\"zk\":1,\"[a-z_]{2,12}\":[\\[\\]{}\",:0-9a-z.-]{0,20}\\}\n?",
        ) {
            ALL.iter().for_each(|(_, decode)| decode(text.as_bytes()));
        }
    }
}
