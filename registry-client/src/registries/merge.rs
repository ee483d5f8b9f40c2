//! One listing out of several.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Looks, Member, NamedSource, Registries, lock};
use crate::listing::{ListedModel, Listing};
use crate::name::ModelName;

/// Models as their registries listed them, and the same with what is added here: shared from one look to the next, so that whoever
/// compares can compare pointers.
#[derive(Default)]
pub(super) struct Tagged(BTreeMap<ModelName, (Arc<ListedModel>, Arc<ListedModel>)>);

impl Tagged {
    fn tag(&self, listed: &Arc<ListedModel>, place: &Arc<str>, problems: Vec<String>) -> (Arc<ListedModel>, Arc<ListedModel>) {
        let known = self.0.get(&listed.name).filter(|(before, tagged)| {
            let added = tagged.problems.get(before.problems.len()..);
            Arc::ptr_eq(before, listed) && tagged.registry.as_ref() == Some(place) && added == Some(&problems)
        });
        if let Some((before, tagged)) = known {
            return (Arc::clone(before), Arc::clone(tagged));
        }
        let mut tagged = ListedModel::clone(listed);
        tagged.registry = Some(Arc::clone(place));
        tagged.problems.extend(problems);
        (Arc::clone(listed), Arc::new(tagged))
    }
}

/// Who has a model of one name.
enum Owner {
    /// This one, and the others are named as a problem.
    Is(usize),
    /// The one that had it before the restart, which can't be read yet.
    Unread(usize),
    /// Nobody has a better claim than another.
    Nobody,
}

impl Registries {
    /// What all registries say, as far as they can be read. It is put together anew only where one of them says something else.
    pub(super) fn merged<'a>(&self, looks: &'a mut Looks) -> &'a Listing {
        let problems = self.problems(&looks.members);
        let changed = self.adopted.swap(false, Ordering::SeqCst) | std::mem::take(&mut looks.changed);
        let kept = looks.merged.take().filter(|kept| !changed && kept.problems == problems);
        let mut listing = kept.unwrap_or_else(|| self.merge(looks, problems));
        listing.at = self.clock.now();
        let recheck_after = listings(&looks.members).filter_map(|(_, listing)| listing.recheck_after).min();
        listing.recheck_after = recheck_after.or_else(|| self.retry_after(looks));
        let health = lock(&self.health);
        let unread = |(member, health): (&Member, &super::Health)| member.listing.is_none() && health.error.is_none();
        listing.unread = looks.members.iter().zip(health.iter()).any(unread);
        drop(health);
        looks.merged.insert(listing)
    }

    fn merge(&self, looks: &mut Looks, problems: Vec<String>) -> Listing {
        let whole = |member: &Member| !member.emptied && member.listing.as_ref().is_some_and(|listing| listing.complete);
        let mut complete = looks.members.iter().all(whole);
        let mut claims: BTreeMap<&ModelName, Vec<(usize, &Arc<ListedModel>)>> = BTreeMap::new();
        for (index, listing) in listings(&looks.members) {
            for (name, model) in &listing.models {
                claims.entry(name).or_default().push((index, model));
            }
        }
        let (mut models, mut tagged) = (BTreeMap::new(), Tagged::default());
        let mut owners = lock(&self.owners);
        for (name, claims) in claims {
            let owner = self.owner(&looks.members, owners.get(name).copied(), &claims);
            let chosen = match owner {
                Owner::Is(owner) => claims.iter().find(|(index, _)| *index == owner),
                Owner::Unread(_) | Owner::Nobody => None,
            };
            let Some((index, listed)) = chosen else {
                complete = false;
                if let Some(model) = self.refused(&owner, &claims) {
                    models.insert(name.clone(), Arc::new(model));
                }
                continue;
            };
            owners.insert(name.clone(), *index);
            let Some(member) = self.members.get(*index) else { continue };
            let others = claims.iter().filter(|(other, _)| other != index).filter_map(|(other, _)| self.members.get(*other));
            let problems = others.map(|other| clash(member, other)).collect();
            let pair = looks.tagged.tag(listed, &member.place, problems);
            models.insert(name.clone(), Arc::clone(&pair.1));
            tagged.0.insert(name.clone(), pair);
        }
        drop(owners);
        looks.tagged = tagged;
        Listing::new(complete, models, self.clock.now(), problems)
    }

    /// Which of those that have a model is the one that it belongs to.
    fn owner(&self, members: &[Member], known: Option<usize>, claims: &[(usize, &Arc<ListedModel>)]) -> Owner {
        if let Some(known) = known {
            if claims.iter().any(|(index, _)| *index == known) {
                return Owner::Is(known);
            }
            // Where all of it has been read and it has other models, but not this one, the model has moved. An empty answer is more
            // likely a mistake.
            let read = |listing: &Listing| listing.complete && !listing.models.is_empty();
            let is_read = members.get(known).is_some_and(|member| !member.emptied && member.listing.as_ref().is_some_and(read));
            if !is_read {
                return Owner::Unread(known);
            }
        }
        match claims {
            [(only, _)] => Owner::Is(*only),
            _ => Owner::Nobody,
        }
    }

    /// A model of which nothing may be loaded: it is shown, so that whoever wonders finds out why.
    fn refused(&self, owner: &Owner, claims: &[(usize, &Arc<ListedModel>)]) -> Option<ListedModel> {
        let (_, first) = claims.first()?;
        let names = claims.iter().filter_map(|(index, _)| self.members.get(*index)).map(NamedSource::describe);
        let names = names.collect::<Vec<_>>().join(" and ");
        let problem = match owner {
            Owner::Unread(owner) => {
                let owner = self.members.get(*owner)?.describe();
                format!(
                    "it belongs to registry {owner}, which is empty or can't be read whole; that of {names} is ignored. Where it has moved \
                     for good, take the other registry out of the configuration"
                )
            }
            _ => format!("registries {names} both have a model of this name: it is loaded from neither, rename one"),
        };
        let unsettled = claims.iter().flat_map(|(_, model)| model.versions.keys().copied()).collect();
        Some(ListedModel { versions: BTreeMap::new(), unsettled, problems: vec![problem], ..ListedModel::clone(first) })
    }

    fn problems(&self, members: &[Member]) -> Vec<String> {
        let mut problems = Vec::new();
        let health = lock(&self.health);
        for ((member, named), health) in members.iter().zip(&self.members).zip(health.iter()) {
            let said = |text: &str| match &named.name {
                Some(name) => format!("registry `{name}`: {text}"),
                None => text.to_owned(),
            };
            problems.extend(member.listing.iter().flat_map(|listing| &listing.problems).map(|problem| said(problem)));
            problems.extend(health.error.iter().filter(|_| self.members.len() > 1).map(|error| said(error)));
            if member.emptied {
                problems.push(said("it is empty now, and was not: what it had stays as it was"));
            }
            if self.members.len() > 1 && member.listing.is_none() && health.error.is_none() {
                problems.push(said("it is being read"));
            }
        }
        problems
    }

    /// When a registry that failed, or that was not waited for, is looked at again.
    fn retry_after(&self, looks: &Looks) -> Option<Duration> {
        if self.members.len() == 1 {
            return None;
        }
        looks.members.iter().any(|member| member.began.is_some()).then_some(Duration::from_secs(1))
    }
}

fn listings(members: &[Member]) -> impl Iterator<Item = (usize, &Listing)> {
    members.iter().enumerate().filter_map(|(index, member)| Some((index, member.listing.as_ref()?)))
}

fn clash(owner: &NamedSource, other: &NamedSource) -> String {
    format!("registry {} has a model of this name too, which is ignored: it belongs to {}", other.describe(), owner.describe())
}
