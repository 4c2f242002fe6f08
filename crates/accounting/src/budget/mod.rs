//! Budgets that hold under adaptive choices: the deck, the Renyi filter, the GDP filter and the odometer.

mod deck;
mod filter;
mod odometer;

pub use deck::{Card, Deck};
pub use filter::{GdpFilter, RenyiFilter};
pub use odometer::Odometer;
