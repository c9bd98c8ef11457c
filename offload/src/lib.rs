//! Coalescing and segmentation.
#![forbid(unsafe_code)]
