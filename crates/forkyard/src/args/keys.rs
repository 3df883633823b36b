//! Options of keys, and of where clients with keys connect to.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};

use super::{JsonOption, values};

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a key and print it; it is not shown again
    Create {
        /// A name that no other key has
        #[arg(value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
        name: Option<String>,
        #[command(flatten)]
        json: JsonOption,
    },
    /// List keys
    #[command(visible_alias = "list")]
    Ls {
        /// Print ids only
        #[arg(short, long, conflicts_with = "json")]
        quiet: bool,
        #[command(flatten)]
        json: JsonOption,
    },
    /// Remove keys: who has one gets no more answers
    Rm {
        /// Their ids or names
        #[arg(required = true, value_name = "KEY", value_parser = NonEmptyStringValueParser::new())]
        keys: Vec<String>,
        /// No error for what is not there
        #[arg(short, long)]
        force: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ListenOptions {
    /// Take requests with a key at this address too, such as `127.0.0.1:3000`; port 0 is one that
    /// is free
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = values::address)]
    pub(crate) listen: Vec<SocketAddr>,
    /// Certificates for TLS at these addresses, in PEM, the server's own first
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "listen"])]
    pub(crate) tls_cert: Option<PathBuf>,
    /// The private key of the certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
}
