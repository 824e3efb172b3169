//! Short acquaintances with tors that somebody else runs: for one run, or for a word.

use super::control::{self, Version};
use super::supervisor::password;
use super::{Tor, session};
use crate::config::{Control, TorRun};

/// Connects to the control port of a tor that somebody else runs, once, and takes in all that it tells; nothing
/// of it is stored. Returns why the connection did not come about, or ended; see also [`Tor::connected`].
pub async fn listen(tor: &Tor) -> String {
    let TorRun::Address { control: Some(control), .. } = &tor.0.config.run else {
        return "there is no control port to connect to".to_owned();
    };
    match password(control) {
        Ok(password) => session::run(tor, &control.address, password.as_deref()).await.to_string(),
        Err(error) => error.to_string(),
    }
}

/// Connects to a control port, authenticates, and asks nothing more; gives tor's version.
///
/// # Errors
/// What the place and the remedy are named of, in a sentence: no connection, or tor does not take what perfd has.
pub async fn greet(control: &Control) -> Result<Version, String> {
    let password = password(control).map_err(|error| error.to_string())?;
    let stream = control::open(&control.address).await.map_err(|error| error.to_string())?;
    let (commands, driver) = control::start(stream);
    tokio::select! {
        biased;
        // First: tor says why it refuses, and then closes the connection.
        version = control::authenticate(&commands, password.as_deref()) => version.map_err(|error| error.to_string()),
        ended = driver.run(|_, _| {}) => Err(ended.to_string()),
    }
}
