//! The programs.

