//! Where a model computes, and in which type: chosen once, at the edge, and handed down.

use std::fmt;
use std::str::FromStr;

use candle_core::Device;

use crate::error::{Error, Result};

/// What can be asked for as a device: `cpu`, `cuda` (the first GPU) or `cuda:N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The processors of this machine.
    Cpu,
    /// A GPU of NVIDIA's, by its number.
    Cuda(usize),
}

impl DeviceChoice {
    /// Makes the device ready.
    ///
    /// # Errors
    /// When this program was built without it, saying what was compiled in, or it is not there.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(_) if !cfg!(feature = "cuda") => Err(Error::Device {
                device: self.to_string(),
                reason: "this program was built for cpu only; build it with --features cuda"
                    .to_owned(),
            }),
            Self::Cuda(number) => Device::new_cuda(number).map_err(|error| Error::Device {
                device: self.to_string(),
                reason: error.to_string(),
            }),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once(':') {
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", number)) if number.parse::<usize>().is_ok() => {
                Ok(Self::Cuda(number.parse().unwrap_or_default()))
            }
            _ => Err(Error::Device {
                device: text.to_owned(),
                reason: "expected cpu, cuda or cuda:N".to_owned(),
            }),
        }
    }
}

/// The type of the elements that a model computes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// Single precision.
    F32,
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("f32")
    }
}

impl FromStr for Dtype {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "f32" => Ok(Self::F32),
            _ => Err(Error::Dtype {
                dtype: text.to_owned(),
            }),
        }
    }
}
