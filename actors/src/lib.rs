//! footlight-actors
