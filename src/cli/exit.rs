//! The exit codes, after sysexits(3) where it has one that fits.

/// It did what it was told.
pub const OK: u8 = 0;
/// It failed, or a run was not complete.
pub const FAILED: u8 = 1;
/// The arguments can't be understood (clap's own code).
pub const USAGE: u8 = 2;
/// The private network is not, or not wholly, up (testnet status).
pub const NOT_UP: u8 = 3;
/// A file departs from its format (EX_DATAERR).
pub const DATA: u8 = 65;
/// A file that was named can't be opened (EX_NOINPUT).
pub const NO_INPUT: u8 = 66;
/// A service that should answer does not.
pub const UNAVAILABLE: u8 = 69;
/// An address can't be listened on.
pub const CANT_LISTEN: u8 = 71;
/// The store, the payload key or the log can't be opened.
pub const STORE: u8 = 74;
/// Privileges can't be dropped, or would not be.
pub const PRIVILEGES: u8 = 77;
/// The configuration is wrong.
pub const CONFIG: u8 = 78;

/// Interrupted while it brought the private network up, or imported, as shells say it.
pub const INTERRUPTED: u8 = 130;

/// All of them, for the help.
pub const HELP: &str = "Exit codes:
  0   done (once: the run is complete; check --online: all that was asked answers)
  1   failed, the run is not complete, or there is no such run or tor
  2   the arguments can't be understood
  3   the private network is not up (testnet status)
  65  a file departs from its format (validate, import)
  66  a file can't be opened (validate, import)
  69  the service asked does not answer
  71  an address can't be listened on
  74  the store, the payload key or the log can't be opened
  77  privileges can't be dropped
  78  the configuration is wrong
  130 interrupted (testnet up, import)";

/// An error that ends perfd, and the code that it ends with.
#[derive(Debug)]
pub struct Exit {
    /// One of the codes above.
    pub code: u8,
    /// What is said on the terminal.
    pub error: anyhow::Error,
}

impl From<anyhow::Error> for Exit {
    fn from(error: anyhow::Error) -> Self {
        Exit { code: FAILED, error }
    }
}

/// Gives an error its exit code.
pub trait OrExit<T> {
    /// Ends with this code if it is an error.
    fn or_exit(self, code: u8) -> Result<T, Exit>;
}

impl<T, E: Into<anyhow::Error>> OrExit<T> for Result<T, E> {
    fn or_exit(self, code: u8) -> Result<T, Exit> {
        self.map_err(|error| Exit { code, error: error.into() })
    }
}
