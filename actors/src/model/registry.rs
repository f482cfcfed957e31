//! Models by name: a job names its model, and each node builds it from what its own binary registered.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tch::Device;

use super::{AnyReplica, Model, ModelError, Replica};

/// Builds a model on a device, its parameters drawn from a seed. It can be sent to the thread where the replica will
/// live.
pub type ModelFactory = fn(seed: u64, device: Device) -> Result<Box<dyn AnyReplica>, ModelError>;

/// The models that a node can build. Each node owns one of these; there is none for the process.
#[derive(Debug, Clone, Default)]
pub struct Models {
    factories: BTreeMap<&'static str, ModelFactory>,
}

impl Models {
    /// No models.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a model.
    ///
    /// # Errors
    /// [`ModelError::Duplicate`] if another one has its name.
    pub fn register<M: Model>(&mut self) -> Result<&mut Self, ModelError> {
        if self.factories.contains_key(M::NAME) {
            return Err(ModelError::Duplicate { name: M::NAME });
        }
        self.factories
            .insert(M::NAME, |seed, device| Ok(Box::new(Replica::<M>::new(seed, device)?)));
        Ok(self)
    }

    /// The factory of a model.
    ///
    /// # Errors
    /// [`ModelError::Unknown`].
    pub fn get(&self, spec: &ModelSpec) -> Result<ModelFactory, ModelError> {
        self.factories.get(spec.name.as_str()).copied().ok_or_else(|| ModelError::Unknown {
            name: spec.name.clone(),
            known: self.names().collect(),
        })
    }

    /// The names of all models, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.factories.keys().copied()
    }
}

/// Names a model in a job: data that travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelSpec {
    /// Its [`Model::NAME`].
    pub name: String,
}

impl ModelSpec {
    /// Names `M`.
    pub fn of<M: Model>() -> Self {
        Self { name: M::NAME.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::LeNet5;
    use super::*;

    #[test]
    fn a_registered_model_is_built_by_name_and_an_unknown_one_is_told() {
        let mut models = Models::new();
        models.register::<LeNet5>().unwrap();
        let build = models.get(&ModelSpec::of::<LeNet5>()).unwrap();
        assert_eq!(build(1, Device::Cpu).unwrap().name(), "lenet5");
        let unknown = models.get(&ModelSpec { name: "resnet".into() }).unwrap_err();
        assert!(
            unknown
                .to_string()
                .starts_with("there is no model \"resnet\" in this binary: it has [\"lenet5\"]")
        );
        assert_eq!(
            models.register::<LeNet5>().unwrap_err(),
            ModelError::Duplicate { name: "lenet5" }
        );
    }
}
