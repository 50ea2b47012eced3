//! Where a model computes, and in which type: chosen once, at the edge, and handed down.

use crate::error::{Error, Result};
use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The devices that this build can open.
pub const COMPILED_DEVICES: &str = if cfg!(feature = "cuda") {
    "cpu and cuda"
} else {
    "cpu only; build with --features cuda for cuda:N"
};

/// What can be asked for as a device: `cpu`, `cuda:N`, or `cuda` for the first GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// The processors of this machine.
    #[default]
    Cpu,
    /// A GPU of NVIDIA's, counted from 0.
    Cuda(usize),
}

impl DeviceChoice {
    /// Makes the device ready.
    ///
    /// # Errors
    /// [`Error::Device`] when this build lacks it, saying what was compiled in, or the driver has
    /// none.
    pub fn open(self) -> Result<Device> {
        let refused = |reason| Error::Device {
            device: self.to_string(),
            reason,
        };
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(_) if !cfg!(feature = "cuda") => Err(refused(format!(
                "this build computes on {COMPILED_DEVICES}"
            ))),
            // One stream beside the default one: only such a stream can be captured later on.
            Self::Cuda(number) => {
                let device = Device::new_cuda_with_stream(number)
                    .map_err(|error| refused(error.to_string()))?;
                all_on_one_stream(&device);
                // A device without memory pools works without them.
                let _ = keep_freed_memory(&device);
                Ok(device)
            }
        }
    }
}

/// Leaves away the events by which buffers of several streams wait for each other: some of them with
/// every operation.
#[cfg_attr(not(feature = "cuda"), expect(unused_variables))]
#[cfg_attr(
    feature = "cuda",
    expect(unsafe_code, reason = "candle cannot know it")
)]
fn all_on_one_stream(device: &Device) {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        // SAFETY: all buffers of this device are allocated, used and freed on its one stream, in order.
        // Nothing has been allocated yet.
        unsafe { device.disable_event_tracking() };
    }
}

/// Leaves freed memory with this process: the driver would take it back whenever the host waits for the
/// device, which every step does, and map it anew in the next.
///
/// # Errors
/// When the device has no memory pools, as some virtual ones; that costs time alone.
#[cfg_attr(not(feature = "cuda"), expect(unused_variables))]
#[cfg_attr(
    feature = "cuda",
    expect(unsafe_code, reason = "cudarc has no safe call")
)]
fn keep_freed_memory(device: &Device) -> candle_core::Result<()> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        use candle_core::cuda_backend::{WrapErr, cudarc::driver::sys};
        let stream = device.cuda_stream();
        let mut pool = std::ptr::null_mut();
        let mut threshold = u64::MAX;
        // SAFETY: the device exists; the pool and the threshold, a 64-bit number as this attribute wants
        // it, are read and written during the calls only.
        unsafe {
            sys::cuDeviceGetDefaultMemPool(&raw mut pool, stream.context().cu_device())
                .result()
                .w()?;
            let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut threshold).cast())
                .result()
                .w()?;
        }
    }
    Ok(())
}

/// Host memory: where files are read to and numbers are drawn, whatever device they go to.
pub(crate) fn host() -> Device {
    Device::Cpu
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
        let number = match text {
            "cpu" => return Ok(Self::Cpu),
            "cuda" => Some(0),
            other => other.strip_prefix("cuda:").and_then(|n| n.parse().ok()),
        };
        number.map(Self::Cuda).ok_or_else(|| Error::Device {
            device: text.to_owned(),
            reason: format!("expected cpu or cuda:N; this build computes on {COMPILED_DEVICES}"),
        })
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(device: DeviceChoice) -> Self {
        device.to_string()
    }
}

/// Lets this process compute f32 products on GPUs from factors rounded to TF32, which has an f32's
/// range and an f16's precision. Sums stay in f32. Several times as fast on a GPU that has it.
pub fn allow_tf32() {
    candle_core::cuda::set_gemm_reduced_precision_f32(true);
}

/// The type of the elements that a model computes in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dtype {
    /// Single precision.
    #[default]
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
}

impl Dtype {
    /// Its name to candle.
    pub(crate) fn candle(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

impl FromStr for Dtype {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::Bf16),
            other => Err(Error::Dtype {
                dtype: other.to_owned(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices() {
        for (text, device) in [
            ("cpu", DeviceChoice::Cpu),
            ("cuda", DeviceChoice::Cuda(0)),
            ("cuda:3", DeviceChoice::Cuda(3)),
        ] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap(), device);
            assert_eq!(device.to_string().parse::<DeviceChoice>().unwrap(), device);
        }
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:x"] {
            let error = text.parse::<DeviceChoice>().unwrap_err().to_string();
            assert!(error.contains("expected cpu or cuda:N"), "{error}");
        }
        for name in ["f32", "f16", "bf16"] {
            assert_eq!(name.parse::<Dtype>().unwrap().to_string(), name);
        }
        let error = "f8".parse::<Dtype>().unwrap_err().to_string();
        assert!(error.contains("f32"), "{error}");
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn what_is_not_compiled_in_is_refused_with_what_is() {
        let error = DeviceChoice::Cuda(1).open().unwrap_err().to_string();
        assert!(
            error.contains("cuda:1") && error.contains("cpu only"),
            "{error}"
        );
        assert!(DeviceChoice::Cpu.open().is_ok());
    }
}
