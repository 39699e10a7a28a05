//! Devices beside the processor, in builds with a backend for them (features `cuda`, `metal`, `vulkan`): llama.cpp then
//! puts all layers of a model there. Without one of the features there are none, and nothing here changes anything.

use llama_cpp_2::{LlamaBackendDevice, LlamaBackendDeviceType, list_llama_ggml_backend_devices};

/// System calls that drivers need after the engine has confined itself. What a driver opens on first use is not among
/// them. Unmeasured: no build with a device was run.
#[cfg(any(feature = "cuda", feature = "metal", feature = "vulkan"))]
pub(crate) const CALLS: &[i64] = &[libc::SYS_ioctl];
#[cfg(not(any(feature = "cuda", feature = "metal", feature = "vulkan")))]
pub(crate) const CALLS: &[i64] = &[];

/// What computes beside the processor, such as `cuda:nvidia-h200`: a part of an engine's class, since other devices give
/// other bits.
pub(crate) fn names() -> Vec<String> {
    let is_gpu = |device: &LlamaBackendDevice| {
        matches!(device.device_type, LlamaBackendDeviceType::Gpu | LlamaBackendDeviceType::IntegratedGpu)
    };
    let devices = list_llama_ggml_backend_devices().into_iter().filter(is_gpu);
    devices.map(|device| name(&device.backend, &device.description)).collect()
}

/// Instruction sets are listed with commas between them, so a name has none.
fn name(backend: &str, description: &str) -> String {
    let plain = |text: &str| {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        words.map(str::to_ascii_lowercase).collect::<Vec<_>>().join("-")
    };
    format!("{}:{}", plain(backend), plain(description))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_a_name_without_commas() {
        assert_eq!(name("CUDA", "NVIDIA H200 (SXM, 141 GB)"), "cuda:nvidia-h200-sxm-141-gb");
    }

    #[cfg(not(any(feature = "cuda", feature = "metal", feature = "vulkan")))]
    #[test]
    fn a_build_for_processors_knows_no_device() {
        assert_eq!(names(), Vec::<String>::new());
        assert_eq!(CALLS.len(), 0);
    }
}
