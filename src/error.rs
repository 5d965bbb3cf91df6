//! The error that main prints.
