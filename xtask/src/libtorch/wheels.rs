//! The wheels that carry libtorch, written down with size and SHA-256 for each platform.
//!
//! They are the wheels of one Python version whatever Python is here: Python is the carrier, its parts are left out.
//! To move to another libtorch, change [`super::VERSION`], the version of `tch`, and this table.

use super::Flavour;
use crate::checksum::Expected;
use anyhow::{Result, bail};

/// The Python version whose wheels are meant.
pub(crate) const PYTHON: &str = "3.12";

/// One wheel.
#[derive(Debug)]
pub(crate) struct Wheel {
    /// What pip is asked for.
    pub(crate) requirement: &'static str,
    /// The file that it must give.
    pub(crate) file: &'static str,
    /// What is in that file.
    pub(crate) expected: Expected,
    /// Needed for a GPU only.
    cuda_only: bool,
}

#[cfg(test)]
impl Wheel {
    pub(super) const fn of_both(
        requirement: &'static str,
        file: &'static str,
        expected: Expected,
    ) -> Self {
        Self { requirement, file, expected, cuda_only: false }
    }
}

/// The wheels of a platform and flavour.
pub(crate) fn select(os: &str, arch: &str, flavour: Flavour) -> Result<Vec<&'static Wheel>> {
    let all = match (os, arch) {
        ("linux", "x86_64") => LINUX_X86_64,
        ("linux", "aarch64") => LINUX_AARCH64,
        ("macos", "aarch64") => MACOS_AARCH64,
        _ => bail!(
            "there is no libtorch {} for {os} on {arch}: set LIBTORCH to one of your own",
            super::VERSION
        ),
    };
    if flavour == Flavour::Cuda && os == "macos" {
        bail!("CUDA is for Linux: on macOS run it without --cuda");
    }
    Ok(all.iter().filter(|wheel| flavour == Flavour::Cuda || !wheel.cuda_only).collect())
}

const fn wheel(
    requirement: &'static str,
    file: &'static str,
    size: u64,
    sha256: &'static str,
) -> Wheel {
    Wheel { requirement, file, expected: Expected { size, sha256 }, cuda_only: false }
}

const fn cuda(
    requirement: &'static str,
    file: &'static str,
    size: u64,
    sha256: &'static str,
) -> Wheel {
    Wheel { requirement, file, expected: Expected { size, sha256 }, cuda_only: true }
}

// `libtorch_cpu.so` asks for the CUDA run time and its profiler interface on Linux even where there is no GPU.
#[rustfmt::skip]
const LINUX_X86_64: &[Wheel] = &[
    wheel("torch==2.11.0", "torch-2.11.0-cp312-cp312-manylinux_2_28_x86_64.whl", 530_712_279,
        "0f68f4ac6d95d12e896c3b7a912b5871619542ec54d3649cf48cc1edd4dd2756"),
    wheel("nvidia-cuda-runtime==13.0.96", "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl", 2_243_632,
        "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548"),
    wheel("nvidia-cuda-cupti==13.0.85", "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl", 10_715_597,
        "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8"),
    cuda("nvidia-cublas==13.1.0.3", "nvidia_cublas-13.1.0.3-py3-none-manylinux_2_27_x86_64.whl", 423_133_236,
        "ee8722c1f0145ab246bccb9e452153b5e0515fd094c3678df50b2a0888b8b171"),
    cuda("nvidia-cuda-nvrtc==13.0.88", "nvidia_cuda_nvrtc-13.0.88-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl", 90_215_200,
        "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575"),
    cuda("nvidia-cudnn-cu13==9.19.0.56", "nvidia_cudnn_cu13-9.19.0.56-py3-none-manylinux_2_27_x86_64.whl", 366_066_321,
        "d20e1734305e9d68889a96e3f35094d733ff1f83932ebe462753973e53a572bf"),
    cuda("nvidia-cufft==12.0.0.61", "nvidia_cufft-12.0.0.61-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl", 214_085_489,
        "6c44f692dce8fd5ffd3e3df134b6cdb9c2f72d99cf40b62c32dde45eea9ddad3"),
    cuda("nvidia-cufile==1.15.1.6", "nvidia_cufile-1.15.1.6-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl", 1_223_672,
        "08a3ecefae5a01c7f5117351c64f17c7c62efa5fffdbe24fc7d298da19cd0b44"),
    cuda("nvidia-curand==10.4.0.35", "nvidia_curand-10.4.0.35-py3-none-manylinux_2_27_x86_64.whl", 59_544_258,
        "1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc"),
    cuda("nvidia-cusolver==12.0.4.66", "nvidia_cusolver-12.0.4.66-py3-none-manylinux_2_27_x86_64.whl", 200_941_980,
        "0a759da5dea5c0ea10fd307de75cdeb59e7ea4fcb8add0924859b944babf1112"),
    cuda("nvidia-cusparse==12.6.3.3", "nvidia_cusparse-12.6.3.3-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl", 145_942_937,
        "2b3c89c88d01ee0e477cb7f82ef60a11a4bcd57b6b87c33f789350b59759360b"),
    cuda("nvidia-cusparselt-cu13==0.8.0", "nvidia_cusparselt_cu13-0.8.0-py3-none-manylinux2014_x86_64.whl", 169_884_119,
        "25e30a8a7323935d4ad0340b95a0b69926eee755767e8e0b1cf8dd85b197d3fd"),
    cuda("nvidia-nccl-cu13==2.28.9", "nvidia_nccl_cu13-2.28.9-py3-none-manylinux_2_18_x86_64.whl", 196_493_177,
        "e4553a30f34195f3fa1da02a6da3d6337d28f2003943aa0a3d247bbc25fefc42"),
    cuda("nvidia-nvjitlink==13.0.88", "nvidia_nvjitlink-13.0.88-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl", 40_713_933,
        "13a74f429e23b921c1109976abefacc69835f2f433ebd323d3946e11d804e47b"),
    cuda("nvidia-nvshmem-cu13==3.4.5", "nvidia_nvshmem_cu13-3.4.5-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl", 60_412_546,
        "290f0a2ee94c9f3687a02502f3b9299a9f9fe826e6d0287ee18482e78d495b80"),
    cuda("nvidia-nvtx==13.0.85", "nvidia_nvtx-13.0.85-py3-none-manylinux1_x86_64.manylinux_2_5_x86_64.whl", 148_047,
        "4936d1d6780fbe68db454f5e72a42ff64d1fd6397df9f363ae786930fd5c1cd4"),
];

#[rustfmt::skip]
const LINUX_AARCH64: &[Wheel] = &[
    wheel("torch==2.11.0", "torch-2.11.0-cp312-cp312-manylinux_2_28_aarch64.whl", 419_731_115,
        "f99924682ef0aa6a4ab3b1b76f40dc6e273fca09f367d15a524266db100a723f"),
    wheel("nvidia-cuda-runtime==13.0.96", "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl", 2_261_060,
        "ef9bcbe90493a2b9d810e43d249adb3d02e98dd30200d86607d8d02687c43f55"),
    wheel("nvidia-cuda-cupti==13.0.85", "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_aarch64.whl", 10_310_827,
        "796bd679890ee55fb14a94629b698b6db54bcfd833d391d5e94017dd9d7d3151"),
    cuda("nvidia-cublas==13.1.0.3", "nvidia_cublas-13.1.0.3-py3-none-manylinux_2_27_aarch64.whl", 542_851_226,
        "c86fc7f7ae36d7528288c5d88098edcb7b02c633d262e7ddbb86b0ad91be5df2"),
    cuda("nvidia-cuda-nvrtc==13.0.88", "nvidia_cuda_nvrtc-13.0.88-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl", 43_015_449,
        "d27f20a0ca67a4bb34268a5e951033496c5b74870b868bacd046b1b8e0c3267b"),
    cuda("nvidia-cudnn-cu13==9.19.0.56", "nvidia_cudnn_cu13-9.19.0.56-py3-none-manylinux_2_27_aarch64.whl", 433_781_201,
        "6ed29ffaee1176c612daf442e4dd6cfeb6a0caa43ddcbeb59da94953030b1be4"),
    cuda("nvidia-cufft==12.0.0.61", "nvidia_cufft-12.0.0.61-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl", 214_053_554,
        "2708c852ef8cd89d1d2068bdbece0aa188813a0c934db3779b9b1faa8442e5f5"),
    cuda("nvidia-cufile==1.15.1.6", "nvidia_cufile-1.15.1.6-py3-none-manylinux_2_27_aarch64.whl", 1_136_992,
        "bdc0deedc61f548bddf7733bdc216456c2fdb101d020e1ab4b88d232d5e2f6d1"),
    cuda("nvidia-curand==10.4.0.35", "nvidia_curand-10.4.0.35-py3-none-manylinux_2_27_aarch64.whl", 61_962_106,
        "133df5a7509c3e292aaa2b477afd0194f06ce4ea24d714d616ff36439cee349a"),
    cuda("nvidia-cusolver==12.0.4.66", "nvidia_cusolver-12.0.4.66-py3-none-manylinux_2_27_aarch64.whl", 223_467_760,
        "02c2457eaa9e39de20f880f4bd8820e6a1cfb9f9a34f820eb12a155aa5bc92d2"),
    cuda("nvidia-cusparse==12.6.3.3", "nvidia_cusparse-12.6.3.3-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl", 162_155_568,
        "80bcc4662f23f1054ee334a15c72b8940402975e0eab63178fc7e670aa59472c"),
    cuda("nvidia-cusparselt-cu13==0.8.0", "nvidia_cusparselt_cu13-0.8.0-py3-none-manylinux2014_aarch64.whl", 220_791_277,
        "400c6ed1cf6780fc6efedd64ec9f1345871767e6a1a0a552a1ea0578117ea77c"),
    cuda("nvidia-nccl-cu13==2.28.9", "nvidia_nccl_cu13-2.28.9-py3-none-manylinux_2_18_aarch64.whl", 196_561_677,
        "01c873ba1626b54caa12272ed228dc5b2781545e0ae8ba3f432a8ef1c6d78643"),
    cuda("nvidia-nvjitlink==13.0.88", "nvidia_nvjitlink-13.0.88-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl", 38_768_748,
        "e931536ccc7d467a98ba1d8b89ff7fa7f1fa3b13f2b0069118cd7f47bff07d0c"),
    cuda("nvidia-nvshmem-cu13==3.4.5", "nvidia_nvshmem_cu13-3.4.5-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl", 60_215_947,
        "6dc2a197f38e5d0376ad52cd1a2a3617d3cdc150fd5966f4aee9bcebb1d68fe9"),
    cuda("nvidia-nvtx==13.0.85", "nvidia_nvtx-13.0.85-py3-none-manylinux2014_aarch64.manylinux_2_17_aarch64.whl", 148_878,
        "cb7780edb6b14107373c835bf8b72e7a178bac7367e23da7acb108f973f157a6"),
];

#[rustfmt::skip]
const MACOS_AARCH64: &[Wheel] = &[
    wheel("torch==2.11.0", "torch-2.11.0-cp312-cp312-macosx_11_0_arm64.whl", 80_606_338,
        "4b5866312ee6e52ea625cd211dcb97d6a2cdc1131a5f15cc0d87eec948f6dd34"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn names(os: &str, arch: &str, flavour: Flavour) -> Result<Vec<&'static str>, String> {
        let wheels = select(os, arch, flavour).map_err(|error| error.to_string())?;
        Ok(wheels.iter().filter_map(|wheel| wheel.requirement.split("==").next()).collect())
    }

    #[test]
    fn the_cpu_needs_few_and_a_gpu_many() -> Result<(), String> {
        let few = ["torch", "nvidia-cuda-runtime", "nvidia-cuda-cupti"];
        for arch in ["x86_64", "aarch64"] {
            assert_eq!(names("linux", arch, Flavour::Cpu)?, few);
            let many = names("linux", arch, Flavour::Cuda)?;
            assert!(many.starts_with(&few) && many.contains(&"nvidia-cublas"), "{many:?}");
        }
        assert_eq!(names("macos", "aarch64", Flavour::Cpu)?, ["torch"]);
        Ok(())
    }

    #[test]
    fn what_does_not_exist_is_refused_in_words() {
        assert!(
            names("macos", "x86_64", Flavour::Cpu)
                .unwrap_err()
                .contains("macos on x86_64: set LIBTORCH")
        );
        assert!(
            names("macos", "aarch64", Flavour::Cuda).unwrap_err().starts_with("CUDA is for Linux")
        );
    }

    #[test]
    fn the_table_agrees_with_itself() {
        for wheel in [LINUX_X86_64, LINUX_AARCH64, MACOS_AARCH64].into_iter().flatten() {
            // A file name has underscores where the package name has hyphens.
            let stem = wheel.requirement.replace('-', "_").replace("==", "-");
            assert!(
                wheel.file.starts_with(&stem) && wheel.file.ends_with(".whl"),
                "{}",
                wheel.file
            );
            assert_eq!(wheel.expected.sha256.len(), 64);
        }
        assert!(LINUX_X86_64[0].requirement.ends_with(super::super::VERSION));
    }
}
