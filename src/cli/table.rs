//! The declarative option tables: parsing, `--help`, man pages and shell completions all read
//! these rows, so that none of them can say something that the others do not.

/// How many values follow an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// A switch.
    Nothing,
    /// One value, shown in help by this placeholder.
    One(&'static str),
    /// One of these words, or none, which means the first. The next argument is the value only if it
    /// is one of them.
    Word(&'static [&'static str]),
    /// Two values, as badvpn's `--local-udp-addrs ADDR:PORT N`.
    Two(&'static str, &'static str),
}

/// One option: a row of a table.
#[derive(Debug, Clone, Copy)]
pub struct Opt {
    /// Every spelling, dashes included; the first long one is canonical (it names the option in
    /// errors, the man page and the environment: `--log-level` is `UDPFERRY_LOG_LEVEL`).
    pub names: &'static [&'static str],
    /// What follows it.
    pub takes: Takes,
    /// How often it may stand on one command line; 1 for single options, which refuse a repeat.
    pub times_max: usize,
    /// The value that stands in for an absent option, parsed like a given one; shown in help.
    pub default: Option<&'static str>,
    /// One or two sentences: units, range, meaning.
    pub help: &'static str,
}

/// One positional argument.
#[derive(Debug, Clone, Copy)]
pub struct Positional {
    /// Its placeholder in help, upper case.
    pub name: &'static str,
    /// What it means.
    pub help: &'static str,
    /// Whether the command line is wrong without it.
    pub required: bool,
}

/// One command (a role, or a helper such as `check udpgw`).
#[derive(Debug, Clone, Copy)]
pub struct Command {
    /// How it is called: `udpgw`, or `check udpgw`.
    pub name: &'static str,
    /// One line, no full stop.
    pub summary: &'static str,
    /// A few sentences for the top of `--help` and the man page's DESCRIPTION.
    pub about: &'static str,
    /// Positional arguments in order; the required ones first.
    pub positionals: &'static [Positional],
    /// Options under headings, in the order in which help shows them.
    pub sections: &'static [(&'static str, &'static [Opt])],
    /// Command line and what it does, for help and the man page.
    pub examples: &'static [(&'static str, &'static str)],
}

impl Opt {
    /// A switch.
    pub const fn switch(names: &'static [&'static str], help: &'static str) -> Opt {
        Opt { names, takes: Takes::Nothing, times_max: 1, default: None, help }
    }

    /// A single option with one value.
    pub const fn value(
        names: &'static [&'static str],
        placeholder: &'static str,
        default: Option<&'static str>,
        help: &'static str,
    ) -> Opt {
        Opt { names, takes: Takes::One(placeholder), times_max: 1, default, help }
    }

    /// The spelling that names the option everywhere: the first long one, dashes included.
    pub fn canonical(&self) -> &'static str {
        let long = self.names.iter().find(|name| name.starts_with("--"));
        long.or_else(|| self.names.first()).copied().unwrap_or("")
    }

    /// The environment variable that stands in for it: `--log-level` is `UDPFERRY_LOG_LEVEL`.
    pub fn variable(&self) -> String {
        let name = self.canonical().trim_start_matches('-').replace('-', "_");
        format!("UDPFERRY_{}", name.to_ascii_uppercase())
    }
}

impl Command {
    /// Every option, in the order of the sections.
    pub fn options(&self) -> impl Iterator<Item = &'static Opt> + use<> {
        self.sections.iter().flat_map(|(_, options)| options.iter())
    }

    /// The option that has this spelling.
    pub fn option(&self, spelling: &str) -> Option<&'static Opt> {
        self.options().find(|option| option.names.contains(&spelling))
    }
}
