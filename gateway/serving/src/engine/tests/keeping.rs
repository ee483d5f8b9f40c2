//! What survives a restart, and how what lies on disk is used again.

use super::*;

#[tokio::test]
async fn an_unload_gives_back_what_was_taken_and_survives_a_restart() {
    let world = World::new();
    world.source.publish("m", 1, &FakeModel { bytes: 5000, ..constant(1.0) });
    let serving = world.start().await;
    serving.wait_ready().await;
    let receipts = serving.unload("m", true).await.unwrap();
    let [receipt] = receipts.as_slice() else { panic!("{receipts:?}") };
    assert_eq!((receipt.model.as_str(), receipt.version, receipt.reserved_bytes, receipt.interrupted), ("m", 1, 5000, false));
    assert_eq!((world.runtime.log().counts().live, serving.status().memory.reserved_bytes), (0, 0));
    assert_eq!(ask(&serving, "m", 1).await, Err(InferError::Unloaded { model: "m".to_owned() }));
    assert_eq!(serving.unload("m", true).await, Ok(Vec::new()));
    assert_eq!(serving.unload("never heard of", true).await, Ok(Vec::new()));
    serving.shutdown(Duration::from_secs(30)).await;
    drop(serving);

    let serving = restarted(&world).await;
    serving.wait_ready().await;
    assert_eq!(ask(&serving, "m", 1).await, Err(InferError::Unloaded { model: "m".to_owned() }));
    assert_eq!(serving.load("m").await, Ok(()));
    assert_eq!(ask(&serving, "m", 1).await, Ok((1, vec![1.0])));
}

/// The cache is of one engine at a time: waits until the one before has let go of it.
pub(super) async fn let_go(world: &World) {
    let free = async {
        while Cache::open(world.dir.path().join("cache")).is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), free).await.unwrap();
}

async fn restarted(world: &World) -> Serving {
    let_go(world).await;
    world.start().await
}

#[tokio::test]
async fn a_restart_serves_what_was_served_while_the_source_is_down() {
    let world = World::new();
    world.source.publish("m", 1, &constant(1.0));
    let serving = world.start().await;
    serving.wait_ready().await;
    assert_eq!(ask(&serving, "m", 1).await, Ok((1, vec![1.0])));
    serving.shutdown(Duration::from_secs(30)).await;
    drop(serving);

    world.source.down.store(true, Ordering::SeqCst);
    let serving = restarted(&world).await;
    serving.wait_ready().await;
    assert_eq!(serving.readiness(), Readiness::Ready);
    assert_eq!(ask(&serving, "m", 1).await, Ok((1, vec![1.0])));
    assert_eq!(serving.status().registry.last_error.as_deref(), Some("memory can't be read: unplugged"));
    world.source.down.store(false, Ordering::SeqCst);
    world.source.publish("m", 2, &constant(2.0));
    serving.kick();
    until(&serving, "version 2", |serving| stable(serving, "m") == Some(2)).await;
    assert_eq!(serving.status().registry.last_error, None);
}

#[tokio::test]
async fn what_lies_on_disk_is_compared_before_it_is_served_again() {
    let world = World::new();
    world.source.publish("m", 1, &constant(1.0));
    let serving = world.start().await;
    serving.wait_ready().await;
    serving.shutdown(Duration::from_secs(30)).await;
    drop(serving);
    // Of the same size, so that only its content tells.
    let file = find(&world.dir.path().join("cache"), "model.json");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("\"value\":1.0", "\"value\":6.0")).unwrap();
    let serving = restarted(&world).await;
    serving.wait_ready().await;
    assert_eq!(ask(&serving, "m", 1).await, Ok((1, vec![1.0])));
}

fn find(dir: &Path, name: &str) -> PathBuf {
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.file_name().is_some_and(|found| found == name) {
                return path;
            }
            if path.is_dir() {
                dirs.push(path);
            }
        }
    }
    panic!("there is no {name}");
}

#[tokio::test]
async fn what_served_before_a_restart_is_not_evicted_for_something_else() {
    let world = World::new();
    for model in ["a", "b"] {
        world.source.publish(model, 1, &constant(1.0));
    }
    let serving = world.start().await;
    serving.wait_ready().await;
    serving.shutdown(Duration::from_secs(30)).await;
    drop(serving);
    for model in ["a", "b"] {
        world.source.publish(model, 2, &constant(2.0));
    }
    restarted(&world).await.shutdown(Duration::from_secs(30)).await;
    // Nothing fits into the cache but what is in use or was before the restart.
    world.source.down.store(true, Ordering::SeqCst);
    while Cache::open(world.dir.path().join("cache")).is_err() {
        tokio::task::yield_now().await;
    }
    let serving = Engine::start(EngineOptions { cache_max_bytes: 1, ..world.options() }).await.unwrap();
    serving.wait_ready().await;
    for model in ["a", "b"] {
        assert!(stable(&serving, model).is_some(), "{model}: {:?}", serving.status().models);
    }
}
