//! `perfd token`: who may write notes by the API.

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand};

use super::exit::{Exit, FAILED, OrExit, USAGE};
use super::opened::{StoreArgs, with_store};
use super::output;
use crate::annotation::check_name;
use crate::clock::UnixMicros;
use crate::token;

/// Say who may write notes by the API
///
/// Whoever has a token may write notes on results (`perfd annotate`, `POST /annotations`), under the token's name. The
/// store keeps only a hash of it. It works beside a running perfd, which knows of a change at once. Run it as perfd's
/// user, or with sudo.
#[derive(Args, Debug)]
pub struct TokenArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Make a token, and print it: this once only
    Add {
        /// Who writes with it; notes show this name
        name: String,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// List the names of those who have one, and since when
    List {
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Forget a token: nothing is written with it any more
    Remove {
        /// Whose
        name: String,
        #[command(flatten)]
        store: StoreArgs,
    },
}

/// Adds, lists or removes.
pub fn run(args: TokenArgs) -> Result<(), Exit> {
    match args.action {
        Action::Add { name, store } => {
            check_name("the name", &name).map_err(|reason| anyhow!(reason)).or_exit(USAGE)?;
            let made = token::new().context("the system has no random numbers").or_exit(FAILED)?;
            let hash = token::hash(&made);
            with_store(&store.path()?, async |store| store.add_token(&name, &hash, UnixMicros::now()).await)?;
            output::note(format_args!(
                "the token of {name}, shown this once; keep it in a file that only its owner reads"
            ));
            output::print(format!("{made}\n")).map(drop)
        }
        Action::List { store } => {
            let tokens = with_store(&store.path()?, async |store| store.reader().tokens().await)?;
            if tokens.is_empty() {
                output::note("there are no tokens; `perfd token add NAME` makes one");
                return Ok(());
            }
            let mut rows = vec![["NAME", "SINCE"].map(str::to_owned).to_vec()];
            rows.extend(tokens.into_iter().map(|token| vec![token.name, token.created.to_string()]));
            output::print(output::harmless(&output::columns(&rows))).map(drop)
        }
        Action::Remove { name, store } => {
            let removed = with_store(&store.path()?, async |store| store.remove_token(&name).await)?;
            let none = || anyhow!("there is no token of {name}; `perfd token list` names all");
            if removed { Ok(()) } else { Err(none()).or_exit(FAILED) }
        }
    }
}
