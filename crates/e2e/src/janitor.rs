//! Cleans up after a test process that could not do it itself, because it was killed or because a value lived in a static.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
};

use std::os::unix::process::CommandExt;

/// Waits for the end of the pipe, that is for our end, then removes our directory, the namespaces named after it, and what
/// Docker has of our project. Our processes are dying at the same time and may still write: hence the tries.
const SCRIPT: &str = r#"
cat >/dev/null
if [ -e "$1/project" ]; then
    ours="label=com.docker.compose.project=$(cat "$1/project")"
    docker ps --all --quiet --filter "$ours" | xargs -r docker rm --force --volumes
    docker network ls --quiet --filter "$ours" | xargs -r docker network rm
    docker volume ls --quiet --filter "$ours" | xargs -r docker volume rm
fi
for try in 1 2 3 4 5 6 7 8 9 10; do
    rm -rf -- "$1"
    [ -e "$1" ] || break
    sleep 0.2
done
for netns in "/run/netns/${1##*/}"-*; do
    [ -e "$netns" ] && ip netns delete "${netns##*/}"
done
"#;

struct Workshop {
    dir: PathBuf,
    /// Holds the write end of the janitor's pipe, which nothing but the end of this process closes.
    _janitor: Child,
}

/// The directory in which everything of this test process is made.
pub(crate) fn workshop() -> &'static Path {
    static WORKSHOP: OnceLock<Workshop> = OnceLock::new();
    &WORKSHOP.get_or_init(open).dir
}

/// Begins the name of each of our network namespaces.
pub(crate) fn name() -> String {
    let name = workshop().file_name().expect("the workshop has a name");
    name.to_string_lossy().into_owned()
}

/// A name for a project of docker-compose, of which nothing will be left.
pub(crate) fn project() -> String {
    let name = name().to_lowercase();
    std::fs::write(workshop().join("project"), &name).expect("a file can be written");
    name
}

fn open() -> Workshop {
    let dir = tempfile::Builder::new().prefix("e2e-").tempdir().expect("a temporary directory can be made").keep();
    let janitor = Command::new("/bin/sh")
        .args(["-c", SCRIPT, "janitor"])
        .arg(&dir)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0) // a Ctrl-C at the terminal is for us, not for the janitor
        .spawn()
        .expect("/bin/sh can be started");
    Workshop { dir, _janitor: janitor }
}
