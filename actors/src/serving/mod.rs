//! Serving: a model that answers, and the HTTP gateway in front of it.

pub mod gateway;
pub mod inference;

pub use gateway::Gateway;
pub use inference::{Inference, InferenceSpec, Predict, Prediction};
