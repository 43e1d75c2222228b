//! Shell completions: clap's own scripts, and the names of tasks and workers wherever the command line takes one. Pure.
//!
//! The scripts ask `zk-client names`, a hidden command, on the ensemble that the line being typed or the environment names.
//! Where a name belongs is read from the command line itself: where its placeholder is `TASK` or `WORKER`.

use clap::builder::PossibleValue;
use clap::{Arg, Command, CommandFactory as _, ValueEnum};

/// For which shells there are scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shell(clap_complete::Shell);

impl ValueEnum for Shell {
    fn value_variants<'a>() -> &'a [Self] {
        use clap_complete::Shell::{Bash, Fish, Zsh};
        &[Shell(Bash), Shell(Zsh), Shell(Fish)]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        self.0.to_possible_value()
    }
}

/// What has a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Below `/tasks`.
    Tasks,
    /// Below `/workers` and `/assign`.
    Workers,
}

impl Kind {
    /// What an argument takes the name of.
    fn of(arg: &Arg) -> Option<Kind> {
        match arg.get_value_names()?.first()?.as_str() {
            "TASK" => Some(Kind::Tasks),
            "WORKER" => Some(Kind::Workers),
            _ => None,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Kind::Tasks => "tasks",
            Kind::Workers => "workers",
        }
    }
}

/// The script that a shell sources.
pub fn script(shell: Shell) -> String {
    let mut command = crate::Args::command();
    let mut script = Vec::new();
    clap_complete::generate(shell.0, &mut command, "zk-client", &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    match shell.0 {
        clap_complete::Shell::Zsh => zsh(&script),
        clap_complete::Shell::Fish => script + &fish(&command),
        // Of the three only this one shows commands that are hidden.
        _ => script.replace(" names ", " ") + &bash(&command),
    }
}

/// A command, one of its options, and what that takes the name of.
type NamedOption<'a> = (&'a str, &'a str, Kind);

/// The commands whose own arguments are names, and the options that take names.
fn places(command: &Command) -> (Vec<(&str, Kind)>, Vec<NamedOption<'_>>) {
    let (mut positional, mut options) = (Vec::new(), Vec::new());
    for subcommand in command.get_subcommands() {
        for arg in subcommand.get_arguments() {
            match (Kind::of(arg), arg.get_long()) {
                (Some(kind), None) => positional.push((subcommand.get_name(), kind)),
                (Some(kind), Some(long)) => options.push((subcommand.get_name(), long, kind)),
                (None, _) => {}
            }
        }
    }
    (positional, options)
}

/// Wraps the function of the script: what is no name is left to it. A line is looked at as a whole, because bash takes a
/// connect string for several words.
fn bash(command: &Command) -> String {
    let (positional, options) = places(command);
    let cases = |places: &mut dyn Iterator<Item = (String, Kind)>| -> String {
        places.map(|(word, kind)| format!("            {word}) kind={} ;;\n", kind.word())).collect()
    };
    let mut options: Vec<(String, Kind)> =
        options.into_iter().map(|(_, long, kind)| (format!("--{long}"), kind)).collect();
    options.sort_by(|a, b| a.0.cmp(&b.0));
    options.dedup();
    let options = cases(&mut options.into_iter());
    let positional = cases(&mut positional.into_iter().map(|(name, kind)| (name.to_owned(), kind)));
    format!(
        r#"
_zk_client_or_names() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" kind="" word option at=()
    case "${{COMP_WORDS[COMP_CWORD-1]}}" in
{options}    esac
    if [[ -z $kind && $current != -* ]]; then
        for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
            case "$word" in
{positional}            esac
            [[ -n $kind || $word == -- ]] && break
        done
    fi
    if [[ -z $kind ]]; then
        _zk__client "$@"
        return
    fi
    for option in --zk --auth-file --tls-ca --tls-cert --tls-key --tls-name; do
        [[ $COMP_LINE =~ $option[=\ ]+([^ ]+) ]] && at+=("$option" "${{BASH_REMATCH[1]}}")
    done
    COMPREPLY=($(compgen -W "$(zk-client "${{at[@]}}" --connect-timeout 2s names "$kind" 2>/dev/null)" -- "$current"))
}}
complete -F _zk_client_or_names -o bashdefault -o default zk-client
"#
    )
}

/// Gives the arguments that are names a function of ours to complete them.
fn zsh(script: &str) -> String {
    let lines = script.lines().map(|line| {
        let kind = match line {
            _ if [":TASK:", ":task -- ", ":tasks -- "].iter().any(|place| line.contains(place)) => Kind::Tasks,
            _ if [":WORKER:", ":worker -- "].iter().any(|place| line.contains(place)) => Kind::Workers,
            _ => return format!("{line}\n"),
        };
        line.replace(":_default'", &format!(":_zk_client_names {}'", kind.word())) + "\n"
    });
    let names = r#"
_zk_client_names() {
    local kind=$1 option
    shift
    local -a at names
    for option in --zk --auth-file --tls-ca --tls-cert --tls-key --tls-name; do
        [[ "${words[*]}" =~ "${option}[= ]+([^ ]+)" ]] && at+=($option $match[1])
    done
    names=(${(f)"$(zk-client $at --connect-timeout 2s names $kind 2>/dev/null)"})
    compadd "$@" -a names
}
"#;
    let script: String = lines.collect();
    // The first line is `#compdef`; the last lines call the main function, so ours has to come before.
    match script.split_once('\n') {
        Some((first, rest)) => format!("{first}\n{names}{rest}"),
        None => script,
    }
}

fn fish(command: &Command) -> String {
    let (positional, options) = places(command);
    let mut script = r#"
function __zk_client_names
    set -l at
    for option in --zk --auth-file --tls-ca --tls-cert --tls-key --tls-name
        set -l value (commandline -p | string match -rg -- $option'[= ]+(\S+)')
        and set -a at $option $value
    end
    zk-client $at --connect-timeout 2s names $argv 2>/dev/null
end
"#
    .to_owned();
    let mut add = |subcommand: &str, place: &str, kind: Kind| {
        let kind = kind.word();
        script += &format!(
            "complete -c zk-client -n \"__fish_zk_client_using_subcommand {subcommand}\" {place} -a \"(__zk_client_names {kind})\"\n"
        );
    };
    positional.iter().for_each(|(subcommand, kind)| add(subcommand, "-f", *kind));
    options.iter().for_each(|(subcommand, long, kind)| add(subcommand, &format!("-l {long} -x"), *kind));
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    /// clap builds subcommands that somebody forgot here into the scripts by itself; the names come from the placeholders.
    #[test]
    fn whatever_takes_a_name_completes_it() {
        let command = crate::Args::command();
        let (positional, options) = places(&command);
        for name in ["wait", "show", "why", "logs", "cancel", "retry", "rm"] {
            assert!(positional.contains(&(name, Kind::Tasks)), "{name}");
        }
        assert!(positional.contains(&("drain", Kind::Workers)) && positional.contains(&("undrain", Kind::Workers)));
        assert!(options.contains(&("run", "on", Kind::Workers)) && options.contains(&("submit", "after", Kind::Tasks)));
        let zsh = script(Shell(clap_complete::Shell::Zsh));
        let count = |kind: &str| zsh.matches(&format!(":_zk_client_names {kind}'")).count();
        let expected = |kind| {
            positional.iter().filter(|place| place.1 == kind).count()
                + options.iter().filter(|place| place.2 == kind).count()
        };
        assert_eq!((count("tasks"), count("workers")), (expected(Kind::Tasks), expected(Kind::Workers)));
    }
}
